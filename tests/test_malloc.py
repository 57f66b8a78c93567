"""Freed memory is kept where that can be asked for, and nothing of the user's is overridden."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from vitrail.runtime import malloc

FAULTS = """
import resource
import numpy as np
from vitrail.runtime.malloc import keep_freed
assert keep_freed()
def step():
    for _ in range(10):
        np.ones(4 << 20, np.uint8)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture(autouse=True)
def nothing_of_the_users(monkeypatch):
    for name in ("MALLOC_ARENA_MAX", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the C library, which is not this process's."""
    made = {}
    library = SimpleNamespace(mallopt=lambda number, value: made.update({number: value}) or 1)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(sys, "platform", "linux")
    return made


def test_glibc_is_told(calls):
    assert malloc.keep_freed()
    assert calls == malloc.SETTINGS
    assert all(0 < value < 2**31 for value in calls.values())  # they travel as ints


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_ARENA_MAX", "1"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")]
)
def test_settings_of_the_users_stay(calls, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not malloc.keep_freed()
    assert not calls


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (sys, "platform", "darwin"),
        (ctypes, "CDLL", lambda _: SimpleNamespace()),
        (ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda number, value: 0)),
    ],
)
def test_elsewhere_nothing_happens_and_a_refusal_is_returned(calls, monkeypatch, owner, name, value):
    monkeypatch.setattr(owner, name, value)
    assert not malloc.keep_freed()
    assert not calls


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_that_was_freed_is_used_again_without_faults():
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 100

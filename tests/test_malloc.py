"""Freed memory is kept where that can be asked for, and nothing of the user's is overridden."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from vitrail.runtime import malloc as allocator

FAULTS = """
import os, resource, sys
import numpy as np
from vitrail.runtime.malloc import keep_freed
if sys.argv[1] == "kept":
    assert keep_freed()
def step():
    for _ in range(10):
        np.ones(4 << 20, np.uint8)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the C library, which is not this process's."""
    made = []

    def mallopt(number, value):
        made.append((number, value))
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("MALLOC_ARENA_MAX", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_glibc_is_told_once_for_each_setting(calls):
    assert allocator.keep_freed()
    assert dict(calls) == allocator.SETTINGS
    assert all(0 < value < 2**31 for value in allocator.SETTINGS.values())  # they travel as ints


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_ARENA_MAX", "1"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")]
)
def test_settings_of_the_users_stay(calls, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not allocator.keep_freed()
    assert calls == []


def test_elsewhere_nothing_happens(calls, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert not allocator.keep_freed()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_freed()
    assert calls == []


def test_a_setting_that_is_refused_is_told(calls, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda number, value: 0))
    assert not allocator.keep_freed()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_that_was_freed_is_used_again_without_faults(monkeypatch):
    for name in ("MALLOC_ARENA_MAX", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    found = subprocess.run([sys.executable, "-c", FAULTS, "kept"], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 100

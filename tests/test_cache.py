"""What is kept: made once, whole or not at all, anew when the original changed, and never needed."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vitrail.data.sources import cache
from vitrail.data.sources.cache import cache_folder, kept_arrays, unpacked


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def original(tmp_path):
    path = tmp_path / "photos.tar"
    path.write_bytes(b"1234")
    return path


def unpack(original, content, calls=None, kind="tar"):
    """What is kept, when it should be `content`."""

    def write(file):
        (calls if calls is not None else []).append(1)
        time.sleep(0.05)
        yield file.write(content)

    return unpacked(original, kind, 1, write).read_bytes()


def make(makes):
    """The `make` of kept_arrays; each call is noted in `makes`."""
    makes.append(1)
    return {"numbers": np.arange(5), "bytes": np.frombuffer(b"abc", np.uint8), "none": np.zeros(0, np.int8)}


def test_a_file_is_made_once_by_several_at_once(original, folder, capsys):
    calls = []
    # Locks belong to open files, so that threads wait for each other as processes do.
    with ThreadPoolExecutor(4) as pool:
        assert {done.result() for done in [pool.submit(unpack, original, b"x", calls) for _ in range(4)]} == {b"x"}
    assert unpack(original, b"y", calls) == b"x"
    assert len(calls) == 1
    os.utime(original, ns=(1, 1))  # as if it were another
    assert unpack(original, b"y") == b"y"
    assert unpack(original, b"z", kind="other.tar") == b"z"
    assert [file.suffix for file in folder.iterdir()] == [".tar"] * 3
    assert "photos.tar is unpacked once" in capsys.readouterr().err


def test_what_fails_half_way_leaves_nothing_that_counts(original):
    def fail(file):
        yield file.write(b"half")
        raise EOFError("stop")

    with pytest.raises(ValueError, match="stop"):
        unpacked(original, "tar", 4, fail)
    assert unpack(original, b"whole") == b"whole"


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_index_is_made_anew(original, folder, damage):
    makes = []
    first, second = (kept_arrays(original, "index", lambda: make(makes)) for _ in range(2))
    assert len(makes) == 1
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], strict=True)
    (place,) = folder.iterdir()
    data = bytearray(place.read_bytes())
    data[-7] ^= 1
    place.write_bytes({"cut": data[:-7], "flip": data, "empty": b"", "other": b"PK\x03\x04" * 50}[damage])
    for _ in range(2):
        assert np.array_equal(kept_arrays(original, "index", lambda: make(makes))["numbers"], np.arange(5))
    assert len(makes) == 2


def test_a_folder_that_cannot_be_written_costs_time_only(original, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(original / "below a file"))
    makes = []
    for _ in range(2):
        assert len(kept_arrays(original, "index", lambda: make(makes))["numbers"]) == 5
    assert len(makes) == 2
    with pytest.raises(ValueError, match=r"photos.tar cannot be unpacked .*VITRAIL_CACHE"):
        unpack(original, b"x")


def test_the_folder_is_in_the_users_home_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("VITRAIL_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "vitrail"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without one
    with pytest.raises(OSError, match="no home"):
        cache_folder()


@pytest.mark.parametrize("room", [[10_000], [2**30, 10_000]])
def test_a_full_disk_is_refused_before_and_meanwhile(original, folder, monkeypatch, room):
    left = iter(room)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=next(left)))
    with pytest.raises(ValueError, match=r"photos.tar takes [0-9,]+ bytes .* but 10,000 are free"):
        unpack(original, b"x")
    assert [file.read_bytes() for file in folder.iterdir()] == [b""]

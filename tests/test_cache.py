"""What is kept: made once, whole or not at all, anew when the original changed, and never needed."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import vitrail.data.sources.cache as cache
from vitrail.data.sources.cache import cache_folder, is_kept, kept, kept_arrays, space, unpacking


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def original(tmp_path):
    path = tmp_path / "photos.tar"
    path.write_bytes(b"1234")
    return path


def counting(makes):
    """A `make` for kept_arrays that notes each call in `makes`."""

    def make():
        makes.append(1)
        return {"numbers": np.arange(5), "bytes": np.frombuffer(b"abc", np.uint8), "none": np.zeros(0, np.int8)}

    return make


def test_a_file_is_made_once(original, folder):
    calls = []

    def write(file):
        calls.append(file.write(b"content"))

    assert not is_kept(original, "tar")
    place = kept(original, "tar", write)
    assert place.read_bytes() == b"content"
    assert place.parent == folder
    assert kept(original, "tar", write) == place
    assert is_kept(original, "tar")
    assert len(calls) == 1
    assert kept(original, "other.tar", write) != place
    assert [file.suffix for file in folder.iterdir()] == [".tar", ".tar"]


def test_a_changed_original_is_read_anew(original):
    made = [kept(original, "tar", lambda file: file.write(b"x"))]
    original.write_bytes(b"12345")
    made.append(kept(original, "tar", lambda file: file.write(b"y")))
    os.utime(original, ns=(1, 1))
    made.append(kept(original, "tar", lambda file: file.write(b"z")))
    assert [place.read_bytes() for place in made] == [b"x", b"y", b"z"]


def test_what_fails_half_way_leaves_nothing_that_counts(original):
    def fail(file):
        file.write(b"half")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        kept(original, "tar", fail)
    assert not is_kept(original, "tar")
    assert kept(original, "tar", lambda file: file.write(b"whole")).read_bytes() == b"whole"


def test_of_several_at_once_one_makes_it_and_the_others_wait(original):
    calls = []

    def slowly(file):
        calls.append(1)
        time.sleep(0.1)
        file.write(b"content")

    # Locks belong to open files, so that threads wait for each other as processes do.
    with ThreadPoolExecutor(4) as pool:
        places = [pool.submit(kept, original, "tar", slowly) for _ in range(4)]
    assert {place.result().read_bytes() for place in places} == {b"content"}
    assert len(calls) == 1


def test_arrays_come_back_as_they_were(original):
    makes = []
    first, second = (kept_arrays(original, "index", counting(makes)) for _ in range(2))
    assert len(makes) == 1
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.dtype == second[name].dtype
        assert np.array_equal(array, second[name])


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_index_is_made_anew(original, folder, damage):
    makes = []
    whole = kept_arrays(original, "index", counting(makes))
    (place,) = folder.iterdir()
    data = bytearray(place.read_bytes())
    data[-3] ^= 1
    place.write_bytes({"cut": data[:-7], "flip": data, "empty": b"", "other": b"PK\x03\x04" * 50}[damage])
    for _ in range(2):
        again = kept_arrays(original, "index", counting(makes))
        assert np.array_equal(again["numbers"], whole["numbers"])
    assert len(makes) == 2


def test_a_folder_that_cannot_be_written_costs_time_only(original, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(original / "below a file"))
    makes = []
    for _ in range(2):
        assert len(kept_arrays(original, "index", counting(makes))["numbers"]) == 5
    assert len(makes) == 2
    assert not is_kept(original, "index")
    with pytest.raises(ValueError, match=r"photos.tar is to be unpacked into .*below a file, which cannot be written"):
        kept(original, "tar", lambda file: file.write(b"x"))


def test_the_folder_is_in_the_users_home_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("VITRAIL_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "vitrail"

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(cache.Path, "home", homeless)
    with pytest.raises(OSError, match="no home"):
        cache_folder()


def test_a_full_disk_is_refused_beforehand(original, monkeypatch):
    space(original, 1)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    with pytest.raises(ValueError, match=r"photos.tar takes 20,000 bytes .* but 10,000 are free at .*; make room, or"):
        space(original, 20_000)


def test_progress_says_what_is_going_on(original, capsys):
    unpacking(original, iter([1, 2**20, 5 * 2**20]), 5 * 2**20)
    said = capsys.readouterr()
    assert said.out == ""
    assert "photos.tar is unpacked once, into" in said.err
    assert "(5,242,880 bytes)" in said.err

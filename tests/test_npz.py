"""A .npz file is read lazily, without pickle, and never allocates what it only claims."""

import pickle
import struct
import zipfile
from contextlib import closing

import numpy as np
import pytest

from vitrail.weights import npz
from vitrail.weights.npz import Npz


class Runs:
    """Unpickling this would end the tests."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a file was run')",))


def entry(path, name, content):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, content)
    return path


def header(shape, descr="<f4"):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_bit_for_bit(tmp_path, save):
    rng = np.random.default_rng(0)
    arrays = {
        "a/b": rng.normal(size=(3, 4)).astype(np.float32),
        "scalar": np.float64(2.5),
        "empty": np.zeros((0, 3), np.float16),
        "fortran": np.asfortranarray(rng.normal(size=(4, 5))),
        "big": rng.normal(size=7).astype(">f4"),
        "raw": np.arange(6, dtype=np.uint16).view("V2"),
    }
    save(tmp_path / "w.npz", **arrays)
    with closing(Npz(tmp_path / "w.npz")) as found:
        assert set(found) == set(arrays)
        assert len(found) == len(arrays)
        for name, array in arrays.items():
            array = np.asarray(array)
            assert found[name].shape == array.shape == found.form(name)[0]
            assert found[name].dtype == array.dtype.newbyteorder("=")
            assert found[name].tolist() == array.tolist()
            assert found[name].flags.writeable


def test_shapes_cost_no_reading(tmp_path, monkeypatch):
    np.savez(tmp_path / "w.npz", a=np.zeros((2, 3), np.float32))
    monkeypatch.setattr(npz.npy, "read_array", None)
    with closing(Npz(tmp_path / "w.npz")) as found:
        assert npz.forms_of(found) == {"a": ((2, 3), np.dtype("<f4"))}
    assert npz.forms_of({"a": np.zeros(2)}) == {"a": ((2,), np.dtype("<f8"))}


def test_objects_are_refused_before_they_are_unpickled(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([Runs()], dtype=object))
    with closing(Npz(tmp_path / "w.npz")) as found, pytest.raises(ValueError, match="Python objects"):
        found["a"]
    entry(tmp_path / "p.npz", "a.npy", pickle.dumps(Runs()))
    with closing(Npz(tmp_path / "p.npz")) as found, pytest.raises(ValueError, match="not a readable array"):
        found["a"]


@pytest.mark.parametrize("shape", [(2**40,), (2**20, 2**20), (7,), ()])
def test_a_header_that_lies_is_refused_before_anything_is_allocated(tmp_path, shape):
    entry(tmp_path / "w.npz", "a.npy", header(shape) + b"\0" * 20)
    with (
        closing(Npz(tmp_path / "w.npz")) as found,
        pytest.raises(ValueError, match=r"w\.npz: the array a .* is damaged"),
    ):
        found["a"]


def test_an_entry_that_would_grow_without_bound_is_refused(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.zeros(4, np.float32))
    with closing(Npz(tmp_path / "w.npz")) as found:
        found.entries["a"].file_size = 2**50
        with pytest.raises(ValueError, match="claims to grow"):
            found["a"]


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"<html>", b"PK\x03\x04" + b"\0" * 40, pickle.dumps([1]), -1, 2000, 30]
)
def test_what_is_not_a_whole_archive_is_refused_by_name(tmp_path, content):
    np.savez(tmp_path / "w.npz", a=np.zeros(1000, np.float32))
    whole = (tmp_path / "w.npz").read_bytes()
    (tmp_path / "w.npz").write_bytes(whole[:content] if isinstance(content, int) else content)
    with pytest.raises(ValueError, match=r"w\.npz is not a whole \.npz file"):
        Npz(tmp_path / "w.npz")

"""A .npz file is read lazily, without pickle, and never allocates what it only claims."""

import io
import pickle
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


def header(shape, descr="<f4"):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": descr, "fortran_order": False, "shape": shape})
    return content.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_bit_for_bit_and_shapes_cost_no_reading(tmp_path, monkeypatch, save):
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
        with monkeypatch.context() as patched:
            patched.setattr(npz.npy, "read_array", None)
            assert {name: shape for name, (shape, _) in found.forms.items()} == {
                n: np.shape(a) for n, a in arrays.items()
            }
        for name, array in arrays.items():
            assert found[name].shape == np.shape(array)
            assert found[name].dtype == array.dtype.newbyteorder("=")
            assert found[name].tolist() == array.tolist()
            assert found[name].flags.writeable


@pytest.mark.parametrize(("content", "message"), [
    (header((1,), "|O") + pickle.dumps([Runs()]), "a holds Python objects"),
    (pickle.dumps(Runs()), "a is not a readable array"),
    *((header(shape) + b"\0" * 20, "a is .* damaged") for shape in ((2**40,), (2**20, 2**20), (7,), ())),
])  # fmt: skip
def test_what_a_header_claims_is_refused_before_it_is_unpickled_or_allocated(tmp_path, content, message):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(ValueError, match=rf"w\.npz: (the array )?{message}"):
        Npz(tmp_path / "w.npz")


def test_an_entry_that_would_grow_without_bound_is_refused(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.zeros(4, np.float32))
    content = bytearray((tmp_path / "w.npz").read_bytes())
    size = content.rindex(b"PK\x01\x02") + 24  # in the archive's directory
    content[size : size + 4] = (2**31 - 1).to_bytes(4, "little")
    (tmp_path / "w.npz").write_bytes(content)
    with pytest.raises(ValueError, match="array a claims to grow to 2147483647 bytes"):
        Npz(tmp_path / "w.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + b"\0" * 40, pickle.dumps([1]), -1, 2000])
def test_what_is_not_a_whole_archive_is_refused_by_name(tmp_path, content):
    np.savez(tmp_path / "w.npz", a=np.zeros(1000, np.float32))
    whole = (tmp_path / "w.npz").read_bytes()
    (tmp_path / "w.npz").write_bytes(whole[:content] if isinstance(content, int) else content)
    with pytest.raises(ValueError, match=r"w\.npz is not a whole \.npz file"):
        Npz(tmp_path / "w.npz")

"""CIFAR in each of its forms to the same pixels, as unpickling gives them; damaged and hostile files are refused."""

import gzip
import pickle
import random
import struct
import warnings
from functools import partial

import numpy as np
import pytest
from made_sources import damaged, put, tarred

from vitrail.data.sources import cifar
from vitrail.data.sources.cifar import is_cifar, splits

RANDOM = np.random.default_rng(0)
CLASSES = {10: [*"abcdefghij"], 100: [f"fine{number}" for number in range(100)]}


def batch(count, classes):
    return RANDOM.integers(0, 256, (count, 3072), np.uint8), RANDOM.integers(0, classes, count).tolist()


BATCHES = {
    10: {f"data_batch_{n}": batch(n + 1, 10) for n in range(1, 6)} | {"test_batch": batch(4, 10)},
    100: {"train": batch(1500, 100), "test": batch(3, 100)},
}


def python2(items):
    """What Python 2's cPickle.dumps(items, 2) gives for texts, lists and arrays of bytes."""

    def text(value):
        raw = value.encode("latin-1")
        return b"U" + bytes([len(raw)]) + raw + b"q\x00" if len(raw) < 256 else b"T" + struct.pack("<I", len(raw)) + raw

    def number(value):
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    def any_of(value):
        if isinstance(value, int | str):
            return text(value) if isinstance(value, str) else number(value)
        if isinstance(value, list):
            runs = (value[start : start + 1000] for start in range(0, len(value), 1000))
            return b"]q\x00" + b"".join(b"(" + b"".join(map(any_of, run)) + b"e" for run in runs)
        flag, order = (b"\x88", "F") if value.flags.f_contiguous and not value.flags.c_contiguous else (b"\x89", "C")
        head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R(K\x01"
        kind = b"\x86cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNN"
        whole = head + b"".join(map(number, value.shape)) + kind + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb" + flag
        return whole + text(value.tobytes(order).decode("latin-1")) + b"tb"

    return b"\x80\x02}q\x01(" + b"".join(text(key) + any_of(value) for key, value in items.items()) + b"u."


def files(kind, classes, dumps=python2):
    """name -> content of a whole folder, binary or for Python."""
    found = {"readme.html": b"<html>"}
    for name, (pixels, labels) in BATCHES[classes].items():
        coarse = [label // 5 for label in labels]
        if kind == "python":
            key = {"labels": labels} if classes == 10 else {"coarse_labels": coarse, "fine_labels": labels}
            found[name] = dumps({"data": pixels, **key, "batch_label": "1 of 5", "filenames": ["a.png"] * len(labels)})
        else:
            columns = [labels] if classes == 10 else [coarse, labels]
            found[f"{name}.bin"] = np.concatenate([np.array(columns, np.uint8).T, pixels], axis=1).tobytes()
    if kind == "python" and classes == 10:
        found["batches.meta"] = dumps({"num_cases_per_batch": 10000, "label_names": CLASSES[10], "num_vis": 3072})
    elif kind == "python":
        found["meta"] = dumps({"fine_label_names": CLASSES[100], "coarse_label_names": ["coarse"] * 20})
    else:
        name = "batches.meta.txt" if classes == 10 else "fine_label_names.txt"
        found[name] = "\n".join([*CLASSES[classes], "", ""]).encode()
    return found


def write(place, content, packed=None):
    """As a folder, or as a tar with the folder in it; gives its path."""
    if packed is None:
        return put(place, content)
    data = tarred({f"{place.name}/{name}": data for name, data in content.items()})
    put(place.parent, {place.name + packed: gzip.compress(data) if packed.endswith("gz") else data})
    return place.parent / (place.name + packed)


def check(found, classes):
    """That they are the batches, by the description of the format."""
    for split, source in found.items():
        parts = [part for name, part in BATCHES[classes].items() if name.startswith("test") == (split == "test")]
        images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        assert np.array_equal(source.images, images)
        assert source.labels.tolist() == [label for _, labels in parts for label in labels]
        assert source.class_names == (*CLASSES[classes],)


@pytest.mark.parametrize("packed", [None, ".tar.gz", ".tar"])
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("kind", ["python", "binary", 2, 4])
def test_every_form_gives_the_same(tmp_path, kind, classes, packed):
    """Also copies that Python 3 wrote, by these protocols."""
    how = ("python", classes, partial(pickle.dumps, protocol=kind)) if kind in (2, 4) else (kind, classes)
    path = write(tmp_path / f"cifar-{classes}", files(*how), packed)
    assert is_cifar(path)
    found = splits(path)
    assert list(found) == ["train", "test"]
    check(found, classes)
    assert found["test"].name(2) == f"{path.name}/test[2]"


def unpickled(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the module numpy.core, by its name of then
        return pickle.loads(data, encoding="latin1")


@pytest.mark.parametrize("order", ["C", "F"])
def test_equals_unpickling(tmp_path, order):
    pixels, labels = batch(7, 10)
    data = python2({"data": np.array(pixels, order=order), "labels": labels, "filenames": ["a"] * 7})
    truth = unpickled(data)
    assert np.array_equal(truth["data"], pixels)
    source = splits(put(tmp_path, {"test_batch": data}))["test"]
    assert np.array_equal(source.images, truth["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert source.labels.tolist() == truth["labels"]
    assert source.class_names == tuple(map(str, range(max(labels) + 1)))  # which are not said


def test_a_pickle_runs_nothing(tmp_path):
    """Programs before, in and after an honest batch: the marker file would appear."""
    content, marker = files("python", 10), tmp_path / "ran"
    program = b"cos\nsystem\n(U" + bytes([len(f"touch {marker}")]) + f"touch {marker}".encode() + b"tR0"
    honest = content["data_batch_1"]
    content["data_batch_1"] = honest[:2] + program + honest[2:-1] + program + b"."
    with pytest.raises(SystemExit):
        unpickled(b"\x80\x02csys\nexit\n(tR.")
    check(splits(write(tmp_path / "hostile", content)), 10)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("kind", "classes", "name", "change", "sentence"),
    [
        ("python", 10, "data_batch_2", None, "lacks data_batch_2, of"),
        ("binary", 10, "data_batch_3.bin", lambda data: data[:-1], r"data_batch_3\.bin has 12,291 bytes, not 3,073"),
        ("binary", 10, "batches.meta.txt", lambda _: b"a\nb\n", "label 9, but 2 class names"),
        ("python", 10, "test_batch", lambda data: data.replace(b"]q\0(", b"]q\0(K\3"), "has 5 labels and 12,288 bytes"),
        ("python", 10, "test_batch", lambda _: python2({"data": batch(2, 10)[0], "labels": [1, 256]}), "has 2 labels"),
        ("python", 10, "test_batch", lambda _: pickle.dumps({"data": "\u0100" * 3072, "labels": [1]}, 2), "0 bytes"),
    ],
)
def test_damaged_files_are_named(tmp_path, kind, classes, name, change, sentence):
    content = files(kind, classes)
    data = content.pop(name)
    with pytest.raises(ValueError, match=sentence):
        splits(write(tmp_path / "c", content | ({name: change(data)} if change else {})))


def test_what_holds_too_much_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "BYTES", 2**21)
    monkeypatch.setattr(cifar, "OPCODES", 1000)
    bomb = write(tmp_path / "bomb", {"zeros": bytes(2**22), "data_batch_1": b""}, ".tar.gz")
    assert not is_cifar(bomb)
    pickled = python2({"data": batch(1, 10)[0], "labels": [1]})
    large = put(tmp_path / "a", {"test_batch.bin": bytes(3073 * 683)})
    long = put(tmp_path / "b", {"test": pickled[:2] + b"N0" * 500 + pickled[2:]})
    for place, words in ((bomb, "2,097,152"), (large, "has 2,097,152 bytes"), (long, "has 0 labels")):
        with pytest.raises(ValueError, match=words):
            splits(place)


@pytest.mark.parametrize("packed", [None, ".tar", ".tar.gz"])
def test_damage_is_a_sentence(tmp_path, packed):
    """300 files with flipped bytes, cuts and insertions."""
    rng, refusals = random.Random(3), []
    pickled = python2({"data": batch(2, 10)[0], "labels": [1, 2], "filenames": ["a", "b"]})
    place = write(tmp_path / "c", {"test_batch": pickled}, packed)
    victim = place if packed else place / "test_batch"
    good = victim.read_bytes()
    for _ in range(300):
        victim.write_bytes(damaged(good, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # genops decodes escapes
                assert len(splits(place)["test"]) == 2
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 30
    assert [text for text in refusals if "\n" in text or str(place) not in text] == []

"""CIFAR in each of its forms to the same pixels, as unpickling gives them; damaged and hostile files are refused."""

import gzip
import io
import pickle
import random
import struct
import tarfile
import warnings

import numpy as np
import pytest

from vitrail.data.sources import cifar
from vitrail.data.sources.cifar import is_cifar, splits

RANDOM = np.random.default_rng(0)
TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HUNDRED = tuple(f"fine{number}" for number in range(100))


def batch(count, classes):
    return RANDOM.integers(0, 256, (count, 3072), np.uint8), RANDOM.integers(0, classes, count).tolist()


BATCHES = {10: {f"data_batch_{n}": batch(n + 1, 10) for n in range(1, 6)} | {"test_batch": batch(4, 10)}}
BATCHES[100] = {"train": batch(1500, 100), "test": batch(3, 100)}


def python2(items):
    """What Python 2's cPickle.dumps(items, 2) gives for texts, lists and arrays of bytes."""

    def text(value):
        raw = value.encode("latin-1")
        return b"U" + bytes([len(raw)]) + raw + b"q\x00" if len(raw) < 256 else b"T" + struct.pack("<I", len(raw)) + raw

    def number(value):
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    def any_of(value):
        if isinstance(value, int):
            return number(value)
        if isinstance(value, str):
            return text(value)
        if isinstance(value, list):
            runs = (value[start : start + 1000] for start in range(0, len(value), 1000))
            return b"]q\x00" + b"".join(b"(" + b"".join(map(any_of, run)) + b"e" for run in runs)
        flag, order = (b"\x88", "F") if value.flags.f_contiguous and not value.flags.c_contiguous else (b"\x89", "C")
        shape = b"".join(map(number, value.shape)) + b"\x86"
        dtype = (
            b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNN" + 2 * b"J\xff\xff\xff\xff"
        )
        head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R(K\x01" + shape
        return head + dtype + b"K\x00tb" + flag + text(value.tobytes(order).decode("latin-1")) + b"tb"

    return b"\x80\x02}q\x01(" + b"".join(text(key) + any_of(value) for key, value in items.items()) + b"u."


def files(kind, classes, dumps=python2):
    """name -> content of a whole folder, binary or for Python."""
    found = {}
    for name, (pixels, labels) in BATCHES[classes].items():
        coarse = [label // 5 for label in labels]
        if kind == "python":
            key = {"labels": labels} if classes == 10 else {"coarse_labels": coarse, "fine_labels": labels}
            names = [f"data_{number}.png" for number in range(len(labels))]
            found[name] = dumps({"data": pixels, **key, "batch_label": "batch 1 of 5", "filenames": names})
        else:
            columns = [labels] if classes == 10 else [coarse, labels]
            rows = np.concatenate([np.array(columns, np.uint8).T, pixels], axis=1)
            found[f"{name}.bin"] = rows.tobytes()
    if kind == "python" and classes == 10:
        found["batches.meta"] = dumps({"num_cases_per_batch": 10000, "label_names": list(TEN), "num_vis": 3072})
    elif kind == "python":
        found["meta"] = dumps({"fine_label_names": list(HUNDRED), "coarse_label_names": ["coarse"] * 20})
    else:
        names = ("batches.meta.txt", TEN) if classes == 10 else ("fine_label_names.txt", HUNDRED)
        found[names[0]] = "".join(f"{name}\n" for name in (*names[1], "")).encode()
    return found | {"readme.html": b"<html>"}


def write(place, content, packed=None):
    """As a folder, or as a tar with the folder in it; gives its path."""
    if packed is None:
        place.mkdir(exist_ok=True)
        for name, data in content.items():
            (place / name).write_bytes(data)
        return place
    path = place.with_suffix(packed)
    with tarfile.open(path, "w:gz" if packed == ".tar.gz" else "w") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(f"{place.name}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def expected(classes, split):
    """(images (N, 32, 32, 3), labels), by the description of the format."""
    parts = [part for name, part in BATCHES[classes].items() if name.startswith("test") == (split == "test")]
    images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, [label for _, labels in parts for label in labels]


@pytest.mark.parametrize("packed", [None, ".tar.gz", ".tar"])
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("kind", ["python", "binary"])
def test_every_form_gives_the_same(tmp_path, kind, classes, packed):
    path = write(tmp_path / f"cifar-{classes}-{kind}", files(kind, classes), packed)
    assert is_cifar(path)
    found = splits(path)
    assert list(found) == ["train", "test"]
    for split, source in found.items():
        images, labels = expected(classes, split)
        assert np.array_equal(source.images, images)
        assert source.images.flags.c_contiguous
        assert source.labels.tolist() == labels
        assert source.class_names == (TEN if classes == 10 else HUNDRED)
        image, target, name = source[2]
        assert np.array_equal(image, images[2])
        assert (target, name) == (labels[2], f"{path.name}/{split}[2]")


def unpickled(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the module numpy.core, by its name of then
        return pickle.loads(data, encoding="latin1")


@pytest.mark.parametrize("order", ["C", "F"])
def test_equals_unpickling(order):
    pixels, labels = batch(7, 10)
    data = python2({"data": np.array(pixels, order=order), "labels": labels, "filenames": ["a"] * 7})
    truth = unpickled(data)
    assert np.array_equal(truth["data"], pixels)
    images, found = cifar._python(data, "data_batch_1")
    assert np.array_equal(images, truth["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert found.tolist() == truth["labels"]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_copies_that_python_3_wrote_are_read(tmp_path, protocol):
    path = write(tmp_path / "copy", files("python", 10, lambda items: pickle.dumps(items, protocol)))
    for split, source in splits(path).items():
        images, labels = expected(10, split)
        assert np.array_equal(source.images, images)
        assert source.labels.tolist() == labels
        assert source.class_names == TEN


def test_a_pickle_runs_nothing(tmp_path):
    """Programs before, in and after an honest batch: the marker file would appear."""
    content, marker = files("python", 10), tmp_path / "ran"
    program = b"cos\nsystem\n(U" + bytes([len(f"touch {marker}")]) + f"touch {marker}".encode() + b"tR0"
    honest = content["data_batch_1"]
    content["data_batch_1"] = honest[:2] + program + honest[2:-1] + program + b"."
    with pytest.raises(SystemExit):
        unpickled(b"\x80\x02csys\nexit\n(tR.")
    source = splits(write(tmp_path / "hostile", content))["train"]
    assert np.array_equal(source.images, expected(10, "train")[0])
    assert not marker.exists()


def test_without_names_classes_are_numbers(tmp_path):
    content = files("binary", 10)
    del content["batches.meta.txt"]
    highest = max(expected(10, "train")[1])
    assert splits(write(tmp_path / "c", content))["train"].class_names == tuple(map(str, range(highest + 1)))


def test_one_split_is_enough(tmp_path):
    content = {name: data for name, data in files("binary", 10).items() if "data" not in name}
    assert list(splits(write(tmp_path / "c", content))) == ["test"]


def test_missing_batches_are_named(tmp_path):
    content = files("python", 10)
    del content["data_batch_2"], content["data_batch_5"]
    with pytest.raises(ValueError, match=r"lacks data_batch_2, data_batch_5 of CIFAR's five batches; fetch it again"):
        splits(write(tmp_path / "c", content))


@pytest.mark.parametrize(
    ("kind", "classes", "name", "change", "sentence"),
    [
        (
            "binary",
            10,
            "data_batch_3.bin",
            lambda data: data[:-1],
            r"data_batch_3\.bin has 12,291 bytes, not 3,073 for",
        ),
        ("binary", 100, "train.bin", lambda data: data[:3073], r"train\.bin has 3,073 bytes, not 3,074 for each image"),
        ("binary", 10, "test_batch.bin", lambda _: b"", r"test_batch\.bin has 0 bytes, not 3,073"),
        ("binary", 10, "batches.meta.txt", lambda _: b"a\nb\n", r"/train has the label 9, but there are 2 class names"),
        ("python", 10, "data_batch_1", lambda data: data[:-9000], r"data_batch_1 cannot be read as one of CIFAR's"),
        ("python", 10, "test_batch", lambda _: b"", "test_batch cannot be read as one of CIFAR's batches"),
        ("python", 10, "test_batch", lambda _: b"<html>no", "test_batch cannot be read as one of CIFAR's batches"),
        ("python", 10, "test_batch", lambda _: python2({}), "test_batch has 0 labels and 0 bytes of pixels, not 3,072"),
        ("python", 10, "test_batch", lambda data: data.replace(b"labels", b"lobels"), "has 0 labels and 12,288 bytes"),
        ("python", 10, "test_batch", lambda data: data.replace(b"]q\0(", b"]q\0(K\3"), "has 5 labels and 12,288 bytes"),
        ("python", 100, "meta", lambda data: data[:50], "meta cannot be read as one of CIFAR's batches"),
    ],
)
@pytest.mark.parametrize("packed", [None, ".tar.gz"])
def test_damaged_files_are_named(tmp_path, kind, classes, name, change, sentence, packed):
    content = files(kind, classes)
    content[name] = change(content[name])
    with pytest.raises(ValueError, match=sentence):
        splits(write(tmp_path / "c", content, packed))


def test_labels_out_of_range_are_refused():
    data = python2({"data": batch(2, 10)[0], "labels": [1, 256]})
    with pytest.raises(ValueError, match="has 2 labels and 6,144 bytes"):
        cifar._python(data, "data_batch_1")
    letters = pickle.dumps({"data": "\u0100" * 3072, "labels": [1]}, 2)
    with pytest.raises(ValueError, match="has 1 labels and 0 bytes"):
        cifar._python(letters, "data_batch_1")


def test_endless_pickles_are_cut_off(monkeypatch):
    monkeypatch.setattr(cifar, "OPCODES", 1000)
    with pytest.raises(ValueError, match="it has more than 1,000 opcodes"):
        cifar._python(b"\x80\x02" + b"N" * 5000 + b".", "data_batch_1")


def test_places_of_another_kind(tmp_path):
    (tmp_path / "data_batch_1").mkdir()
    (tmp_path / "notes.txt").touch()
    assert not is_cifar(tmp_path)
    with pytest.raises(ValueError, match="has none of CIFAR's batches, such as data_batch_1; check the path"):
        splits(tmp_path)
    other = write(tmp_path / "shard", {"0.jpg": b"", "0.cls": b"1"}, ".tar")
    assert not is_cifar(other)
    (tmp_path / "zeros.tar.gz").write_bytes(gzip.compress(bytes(100)))
    for name in ("notes.txt", "absent.tar", "zeros.tar.gz"):
        assert not is_cifar(tmp_path / name)


def test_a_small_file_that_holds_much_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "BYTES", 2**21)
    path = write(tmp_path / "bomb", {"zeros": bytes(2**22), "data_batch_1": b""}, ".tar.gz")
    assert path.stat().st_size < 2**14
    assert not is_cifar(path)
    with pytest.raises(
        ValueError, match=r"bomb\.tar\.gz cannot be read as a tar .*it holds more than CIFAR's, 2,097,152"
    ):
        splits(path)
    folder = write(tmp_path / "large", {"data_batch_1": bytes(2**21 + 1)})
    with pytest.raises(ValueError, match="data_batch_1 has 2,097,153 bytes, too many for a batch of CIFAR's"):
        splits(folder)


def damaged(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(data), rng.choice([8, 400, 10**9])))
        kind = rng.choice(["flip", "flip", "cut", "insert"])
        if kind == "flip":
            data[at] = rng.randrange(256)
        elif kind == "cut":
            del data[at : at + rng.randint(1, 50)]
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 9))
    return bytes(data)


@pytest.mark.parametrize("form", ["pickle", "tar", ".tar.gz"])
def test_damage_is_a_sentence(tmp_path, form):
    """300 files with flipped bytes, cuts and insertions."""
    rng, refusals = random.Random(3), []
    pickled = python2({"data": batch(2, 10)[0], "labels": [1, 2], "filenames": ["a", "b"]})
    packed = write(tmp_path / "c", {"test_batch": pickled}, None if form == "pickle" else f".{form.lstrip('.')}")
    good = pickled if form == "pickle" else packed.read_bytes()
    for _ in range(300):
        data = damaged(good, rng)
        try:
            if form == "pickle":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # genops decodes escapes
                    assert len(cifar._python(data, "test_batch")[0]) == 2
            else:
                packed.write_bytes(data)
                splits(packed)
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 30
    assert [text for text in refusals if "\n" in text or not ("test_batch" in text or "CIFAR" in text)] == []

"""Tar files as Sources: class folders and webdataset's shards, indexed once; damage and hostile names are refused."""

import gzip
import os
import pickle
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sources import put as put_files
from made_sources import tarred

import vitrail.data.sources.tar as shards
from vitrail.data.sources.source import classes_of
from vitrail.data.sources.tar import splits


@pytest.fixture(autouse=True)
def folder(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache") / "vitrail"
    monkeypatch.setenv("VITRAIL_CACHE", str(place))
    return place


def put(path, members, **how):
    put_files(path.parent, {path.name: tarred(members, **how)})
    return path


def only(path):
    (found,) = splits(path).items()
    assert found[0] == "all"
    return found[1]


def read(source):
    """[(content, class or classes)], in order; (content,) without a label."""
    return [(one.image, *(source.class_names[number] for number in classes_of(one.target))) for one in source]


def every(path):
    return {split: read(source) for split, source in splits(path).items()}


PETS = {
    "pets/README.txt": b"Many pets.",
    "pets/train/cat/1.jpg": b"1", "pets/train/cat/2.b.PNG": b"22", "pets/train/dog/1.jpg": b"333",
    "pets/test/dog/9.jpg": b"4", "pets/train/dog/.2.jpg": b"hidden", "pets/train/dog/notes.csv": b"x",
}  # fmt: skip
READ = {"train": [(b"1", "cat"), (b"22", "cat"), (b"333", "dog")], "test": [(b"4", "dog")]}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_class_folders_in_splits_whose_headers_are_read_once(tmp_path, monkeypatch, form):
    tar = put(tmp_path / "pets.tar", PETS, form=form)
    assert every(tar) == READ
    assert splits(tar)["train"].name(1) == f"{tar}/pets/train/cat/2.b.PNG"
    monkeypatch.setattr(shards.tarfile, "TarFile", None)
    assert every(tar) == READ


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["./root/cat/1.jpg", "./root/dog/1.jpg"], ["cat", "dog"]),
        (["root/pets/other/1.jpg", "root/cars/other/1.jpg"], ["pets/other", "cars/other"]),
        (["car/1.jpg", "train/1.jpg", "train/2.jpg"], ["car", "train", "train"]),
        (["cafe\u0301/1.jpg", "caf\u00e9/2.jpg"], ["caf\u00e9", "caf\u00e9"]),
        (["x" * 150 + "/1.jpg", "é" * 60 + "/" + "é" * 60 + ".jpg"], ["x" * 150, "é" * 60]),
    ],
)
def test_the_folder_is_the_class(tmp_path, names, classes):
    source = only(put(tmp_path / "x.tar", {name: b"%d" % row for row, name in enumerate(names)}))
    assert read(source) == [(b"%d" % row, name) for row, name in enumerate(classes)]


@pytest.mark.parametrize(
    ("beside", "classes"),
    [
        ([{"cls": b"10\n"}, {"CLS": b"9", "mask.png": b"x"}], ["10", "9"]),
        ([{"cls.txt": b"1"}, {"cls.txt": b""}], ["1", ()]),
        ([{"txt": "\ufeff Köln ".encode()}, {"txt": b"Bonn"}], ["Köln", "Bonn"]),
        ([{"json": b'{"label": 3, "cls": 7}'}, {"json": b'{"class": "x"}'}], ["3", "x"]),
        ([{"json": b"5"}, {"json": b'"x"'}], ["5", "x"]),
        ([{"txt": b"a caption", "json": b'{"category": "b"}', "cls": b"c"}, {"txt": b"d", "json": b"{}"}], ["c", "d"]),
        ([{"json": b'{"labels": ["a", "b"]}'}, {"json": b'{"labels": []}'}], [("a", "b"), ()]),
        ([{"json": b"[1, 0]"}, {"cls": b"0"}], [("1", "0"), ("0",)]),
        ([{"json": b"[1, 0]"}, {"cls": b"0 1"}], ["0", "1"]),
    ],
)
@pytest.mark.parametrize("place", ["", "some/", "train/"])
def test_labels_beside_the_images(tmp_path, beside, classes, place):
    members = []
    for row, files in enumerate(beside):
        image = (f"{place}{row}.jpeg", b"image %d" % row)
        members += [image, *((f"{place}{row}.{kind}", content) for kind, content in files.items())][:: -1 if row else 1]
    expected = [(b"image %d" % row, *([of] if isinstance(of, str) else of)) for row, of in enumerate(classes)]
    assert every(put(tmp_path / "x.tar", members)) == {"train" if place == "train/" else "all": expected}


def test_the_names_of_tars_divide_a_folder_and_records_of_one_lie_side_by_side(tmp_path):
    for name in ("b-train-01.tar", "b-train-00.tar", "validation/0.tar", "validation/1.tar", "test/x.tar", ".y.tar"):
        put(tmp_path / name, {f"root/a/{row}.jpg": f"{name} {row}".encode() for row in (1, 0)})
    put(tmp_path / "b-train-02.tar", {"root/b/1.jpg": b"b"})
    assert every(tmp_path) == {
        "train": [(f"b-train-0{n}.tar {row}".encode(), "a") for n in (0, 1) for row in (1, 0)] + [(b"b", "b")],
        "val": [(f"validation/{n}.tar {row}".encode(), "a") for n in (0, 1) for row in (1, 0)],
        "test": [(b"test/x.tar 1", "a"), (b"test/x.tar 0", "a")],
    }
    # A tar that is named itself may be read as any split.
    assert len(only(tmp_path / "b-train-00.tar")) == 2


names = st.lists(st.text("ab.é/", min_size=1), unique=True, min_size=1, max_size=9)


@settings(max_examples=40, deadline=None)
@given(names.map(lambda found: [f"c/{name.strip('/')}x.jpg" for name in found]), st.data())
def test_every_image_of_any_name_is_found_at_its_place(tmp_path_factory, names, data):
    contents = [data.draw(st.binary(max_size=1500)) for _ in names]
    tar = put(tmp_path_factory.mktemp("tar") / "x.tar", list(zip(names, contents, strict=True)))
    shown = [index for index, name in enumerate(names) if all(part[0] != "." for part in Path(name).parts)]
    if shown and not any(".." in name.split("/") for name in names):
        assert [example.image for example in only(tar)] == [contents[index] for index in shown]


@pytest.mark.parametrize("name", ["pets.tar.gz", "pets.tgz"])
def test_what_is_zipped_is_unpacked_once(tmp_path, name, folder, capsys):
    tar, whole = tmp_path / name, tarred(PETS)
    tar.write_bytes(gzip.compress(whole[:1000]) + gzip.compress(whole[1000:]))
    assert every(tar) == READ
    assert splits(tar)["train"].name(0) == f"{tar}/pets/train/cat/1.jpg"
    assert capsys.readouterr().err.count(f"{name} is unpacked once") == 1
    assert sorted(file.suffix for file in folder.iterdir()) == [".index", ".tar"]
    tar.write_bytes(tar.read_bytes()[:-20])
    with pytest.raises(ValueError, match=name):
        splits(tar)


def test_threads_and_processes_share_a_source(tmp_path, monkeypatch):
    for number in range(6):
        put(tmp_path / f"{number}.tar", {f"c/{row}.jpg": b"%d %d" % (number, row) for row in range(20)})
    source = only(tmp_path)
    expected = [b"%d %d" % (number, row) for number in range(6) for row in range(20)]
    monkeypatch.setattr(shards, "OPEN", 3)
    for some in (source, pickle.loads(pickle.dumps(source))):
        order = random.Random(1).sample(range(120), 120)
        with ThreadPoolExecutor(8) as pool:
            assert [record[0] for record in pool.map(some.__getitem__, order)] == [expected[index] for index in order]


def test_cut_tars_say_after_how_many_files(tmp_path):
    whole = tarred({f"a/{row}.jpg": bytes(1000) for row in range(3)})
    end = 3 * (512 + 1024)
    tar = tmp_path / "x.tar"
    for size, files in [(end - 100, 2), (end - 1024, 2), (512 + 1024 + 99, 1), (600, 0), (end, 3), (end + 100, 3)]:
        tar.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"x.tar is cut short or damaged .* after {files} whole files"):
            splits(tar)
    tar.write_bytes(whole[: end + 512])
    assert len(only(tar)) == 3


def odd(name, **fields):
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


LINKS = [(odd(f"a/{kind}.jpg", type=kind.encode(), linkname="/etc/passwd"), b"") for kind in "123456"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("/a/1.jpg", b"")], "x.tar has /a/1.jpg,"),
        ([("a/../../1.jpg", b"")], r"x.tar has a/../../1.jpg,"),
        ([(odd("a/1.jpg", type=tarfile.GNUTYPE_SPARSE), b"")], "x.tar has a/1.jpg,"),
        ([("a/1.tar", b""), ("a/1.cls", b"1"), *LINKS], "x.tar has no images"),
        ([("a\x1b/1.jpg", b"")], r"x.tar has a class .*'a\\x1b'"),
    ],
)
def test_what_a_tar_must_not_hold(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        splits(put(tmp_path / "x.tar", members))


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[" * 100_000, b'{"label": {}}', b'{"caption": "x"}', b"0.5"])
def test_files_beside_the_images_that_hold_no_label_are_none(tmp_path, content):
    members = {"a/1.jpg": b"1", "a/1.json": content, "a/2.jpg": b"2", "a/1.txt": b"\xff", "a/2.txt": b"x" * 2**21}
    assert read(only(put(tmp_path / "x.tar", members))) == [(b"1", "a"), (b"2", "a")]


def test_a_tar_that_changes_while_it_is_used_is_noticed(tmp_path, monkeypatch):
    tar = put(tmp_path / "x.tar", {"a/1.jpg": bytes(1000), "a/2.jpg": b""})
    source = only(tar)
    os.truncate(tar, 700)
    with pytest.raises(ValueError, match=r"x.tar was cut short .*a/1.jpg"):
        source[0]
    again = pickle.loads(pickle.dumps(source))
    tar.unlink()
    with pytest.raises(ValueError, match=r"x.tar cannot be read"):
        again[1]
    monkeypatch.setattr(shards, "BYTES", 999)
    with pytest.raises(ValueError, match=r"a/1.jpg has 1,000 bytes, more than the 999"):
        source[0]


def test_damage_is_refused_or_harmless(tmp_path):
    whole, rng, tar, refused = tarred(PETS, form=tarfile.GNU_FORMAT), random.Random(2), tmp_path / "x.tar", []
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data) - 8192)] ^= rng.randrange(1, 256)
        tar.write_bytes(data)
        try:
            assert sum(map(len, every(tar).values())) <= 4
        except ValueError as error:
            refused.append(str(error))
    assert 25 < len(refused) < 100
    assert [message for message in refused if str(tar) not in message] == []

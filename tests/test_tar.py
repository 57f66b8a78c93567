"""Tar files as Sources: class folders and webdataset's shards, indexed once; damage and hostile names are refused."""

import gzip
import json
import pickle
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vitrail.data.sources.cache as cache
import vitrail.data.sources.tar as shards
from vitrail.data.sources.records import Records
from vitrail.data.sources.source import Source
from vitrail.data.sources.tar import Members, splits


@pytest.fixture(autouse=True)
def folder(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache") / "vitrail"
    monkeypatch.setenv("VITRAIL_CACHE", str(place))
    return place


def packed(members, form=tarfile.PAX_FORMAT):
    """A tar of {name: content}, or of [(name, content), ...]; a TarInfo stands for itself."""
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    return file.getvalue()


def put(path, members, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(members, **how))
    return path


def only(path):
    (found,) = splits(path).items()
    assert found[0] == "all"
    assert isinstance(found[1], Source)
    return found[1]


def read(source):
    """[(content, class or classes)], in order."""
    found = []
    for index in range(len(source)):
        content, target, _ = source[index]
        names = [source.class_names[number] for number in (target if isinstance(target, tuple) else (target,))]
        found.append((content, *names))
    return found


PETS = {
    "pets/README.txt": b"Many pets.",
    "pets/train/cat/1.jpg": b"1", "pets/train/cat/2.b.PNG": b"22", "pets/train/dog/1.jpg": b"333",
    "pets/test/dog/9.jpg": b"4", "pets/train/dog/.2.jpg": b"hidden", "pets/train/dog/notes.csv": b"x",
}  # fmt: skip


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_class_folders_in_splits(tmp_path, form):
    tar = put(tmp_path / "pets.tar", PETS, form=form)
    found = splits(tar)
    assert {split: read(source) for split, source in found.items()} == {
        "train": [(b"1", "cat"), (b"22", "cat"), (b"333", "dog")],
        "test": [(b"4", "dog")],
    }
    assert found["train"].name(1) == f"{tar}/pets/train/cat/2.b.PNG"
    assert found["train"].class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["cat/1.jpg", "dog/1.jpg"], ["cat", "dog"]),
        (["./root/cat/1.jpg", "./root/dog/1.jpg"], ["cat", "dog"]),
        (["root/pets/other/1.jpg", "root/cars/other/1.jpg"], ["pets/other", "cars/other"]),
        (["car/1.jpg", "train/1.jpg", "train/2.jpg"], ["car", "train", "train"]),
        (["10/1.jpg", "9/1.jpg"], ["10", "9"]),
        (["cafe\u0301/1.jpg", "caf\u00e9/2.jpg"], ["caf\u00e9", "caf\u00e9"]),
        (["x" * 150 + "/1.jpg", "é" * 60 + "/" + "é" * 60 + ".jpg"], ["x" * 150, "é" * 60]),
    ],
)
def test_the_folder_is_the_class(tmp_path, names, classes):
    source = only(put(tmp_path / "x.tar", {name: b"%d" % row for row, name in enumerate(names)}))
    assert read(source) == [(b"%d" % row, name) for row, name in enumerate(classes)]


def test_classes_are_the_same_however_they_are_spread_over_tars(tmp_path):
    put(tmp_path / "0.tar", {"root/a/x/1.jpg": b"0"})
    put(tmp_path / "1.tar", {"root/a/x/2.jpg": b"1", "root/b/x/1.jpg": b"2"})
    assert read(only(tmp_path)) == [(b"0", "a/x"), (b"1", "a/x"), (b"2", "b/x")]


def test_images_without_class_folders_have_no_labels(tmp_path):
    found = splits(put(tmp_path / "x.tar", {"train/1.jpg": b"1", "train/2.jpg": b"2", "val/3.jpg": b"3"}))
    assert {split: [source.target(i) for i in range(len(source))] for split, source in found.items()} == {
        "train": [-1, -1], "val": [-1],
    }  # fmt: skip
    source = only(put(tmp_path / "y.tar", {"1.jpg": b"1"}))
    assert (source.class_names, source[0][:2]) == ((), (b"1", -1))


@pytest.mark.parametrize(
    ("beside", "classes"),
    [
        ([{"cls": b"10\n"}, {"cls": b"9"}], ["10", "9"]),
        ([{"cls.txt": b"1"}, {"CLS": b"0"}], ["1", "0"]),
        ([{"txt": "\ufeff Köln ".encode()}, {"txt": b"Bonn"}], ["Köln", "Bonn"]),
        ([{"json": b'{"label": 3, "cls": 7}'}, {"json": b'{"class": "x"}'}], ["3", "x"]),
        ([{"json": b"5"}, {"json": b'"x"'}], ["5", "x"]),
        ([{"txt": b"a caption", "json": b'{"category": "b"}', "cls": b"c"}, {"txt": b"d", "json": b"{}"}], ["c", "d"]),
        ([{"json": b'{"labels": ["a", "b"]}'}, {"json": b'{"labels": []}'}], [("a", "b"), ()]),
        ([{"json": b"[1, 0]"}, {"cls": b"0"}], [("1", "0"), ("0",)]),
    ],
)
@pytest.mark.parametrize("place", ["", "some/", "train/"])
def test_labels_beside_the_images(tmp_path, beside, classes, place):
    members = []
    for row, files in enumerate(beside):
        image = (f"{place}{row}.jpeg", b"image %d" % row)
        members += [image, *((f"{place}{row}.{kind}", content) for kind, content in files.items())][:: -1 if row else 1]
    found = splits(put(tmp_path / "x.tar", members))
    assert list(found) == ["train" if place == "train/" else "all"]
    expected = [(b"image %d" % row, *([of] if isinstance(of, str) else of)) for row, of in enumerate(classes)]
    assert read(*found.values()) == expected


def test_a_second_image_of_a_stem_belongs_to_the_first(tmp_path):
    members = {"1.jpg": b"1", "1.mask.png": b"x", "1.cls": b"0", "2.mask.png": b"x", "2.jpg": b"2", "2.cls": b"1"}
    assert read(only(put(tmp_path / "x.tar", members))) == [(b"1", "0"), (b"2", "1")]


def test_the_names_of_tars_divide_a_folder_and_records_of_one_lie_side_by_side(tmp_path):
    for name in ("b-train-01.tar", "b-train-00.tar", "validation/0.tar", "validation/1.tar", "test/x.tar", ".y.tar"):
        put(tmp_path / name, {f"{row}.{kind}": name.encode() for row in (1, 0) for kind in ("jpg", "cls")})
    found = splits(tmp_path)
    assert {split: [content.decode() for content, _ in read(source)] for split, source in found.items()} == {
        "train": ["b-train-00.tar"] * 2 + ["b-train-01.tar"] * 2,
        "val": ["validation/0.tar"] * 2 + ["validation/1.tar"] * 2,
        "test": ["test/x.tar"] * 2,
    }
    assert [found["train"].name(index)[-6:] for index in (0, 1)] == ["/1.jpg", "/0.jpg"]
    # A tar that is named itself may be read as any split.
    assert len(only(tmp_path / "b-train-00.tar")) == 2


names = st.lists(st.text("ab.é/", min_size=1), unique=True, min_size=1, max_size=9)


@settings(max_examples=40, deadline=None)
@given(names.map(lambda found: [f"c/{name.strip('/')}x.jpg" for name in found]), st.data())
def test_every_image_of_any_name_is_found_at_its_place(tmp_path_factory, names, data):
    contents = [data.draw(st.binary(max_size=1500)) for _ in names]
    tar = put(tmp_path_factory.mktemp("tar") / "x.tar", list(zip(names, contents, strict=True)))
    if any(part == ".." for name in names for part in name.split("/")):
        return
    shown = [index for index, name in enumerate(names) if not name.rsplit("/", 1)[-1].startswith(".")]
    if not shown:
        return
    source = only(tar)
    assert [source[index][0] for index in range(len(source))] == [contents[index] for index in shown]


def test_the_headers_are_read_once(tmp_path, monkeypatch, folder):
    tar = put(tmp_path / "pets.tar", PETS)
    first = splits(tar)
    (place,) = folder.iterdir()
    scan = shards._scan
    monkeypatch.setattr(shards, "_scan", None)
    assert [read(source) for source in splits(tar).values()] == [read(source) for source in first.values()]
    monkeypatch.setattr(shards, "_scan", scan)
    place.write_bytes(place.read_bytes()[:-5])
    assert [read(source) for source in splits(tar).values()] == [read(source) for source in first.values()]
    put(tar, {"cat/1.jpg": b"new"})
    assert read(only(tar)) == [(b"new", "cat")]


@pytest.mark.parametrize("name", ["pets.tar.gz", "pets.tgz"])
def test_what_is_zipped_is_unpacked_once(tmp_path, name, folder, capsys):
    tar = tmp_path / name
    whole = packed(PETS)
    tar.write_bytes(gzip.compress(whole[:1000]) + gzip.compress(whole[1000:]))
    found = splits(tar)
    assert read(found["train"])[2] == (b"333", "dog")
    assert found["train"].name(0) == f"{tar}/pets/train/cat/1.jpg"
    assert f"{name} is unpacked once" in capsys.readouterr().err
    assert sorted(file.suffix for file in folder.iterdir()) == [".index", ".tar"]
    splits(tar)
    assert capsys.readouterr().err == ""


def test_what_is_zipped_needs_room_and_a_folder(tmp_path, monkeypatch):
    tar = tmp_path / "x.tar.gz"
    tar.write_bytes(gzip.compress(packed({"a/1.jpg": bytes(2**20)})))
    room = iter([2**29, 2**28])
    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=next(room)))
        with pytest.raises(ValueError, match=r"x.tar.gz takes [0-9,]{7,} bytes or more .* but 268,435,456 are free at"):
            splits(tar)
    monkeypatch.setenv("VITRAIL_CACHE", str(tar / "below a file"))
    with pytest.raises(ValueError, match=r"x.tar.gz is to be unpacked into .*, which cannot be written"):
        splits(tar)
    tar.write_bytes(tar.read_bytes()[:-20])
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"x.tar.gz is cut short or damaged .*; copy or download it again"):
        splits(tar)


def test_threads_and_processes_share_a_source(tmp_path, monkeypatch):
    for number in range(6):
        put(tmp_path / f"{number}.tar", {f"c/{row}.jpg": b"%d %d" % (number, row) for row in range(20)})
    source = only(tmp_path)
    expected = [b"%d %d" % (number, row) for number in range(6) for row in range(20)]
    monkeypatch.setattr(shards, "OPEN", 3)
    for some in (source, pickle.loads(pickle.dumps(source)), pickle.loads(pickle.dumps(source))):
        order = random.Random(1).sample(range(120), 120)
        with ThreadPoolExecutor(8) as pool:
            assert [record[0] for record in pool.map(some.__getitem__, order)] == [expected[index] for index in order]
        assert isinstance(some, Records)
        assert isinstance(some.images, Members)
        assert len(some.images._open) == 3


def test_cut_tars_say_how_much_is_missing(tmp_path):
    whole = packed({f"a/{row}.jpg": bytes(1000) for row in range(3)})
    end = 3 * (512 + 1024)
    tar = tmp_path / "x.tar"
    for size, missing, files in [
        (end - 100, 100, 2), (end - 1024, 1024, 2), (512 + 1024 + 512 + 1, 1023, 1), (600, 936, 0),
        (end, 1024, 3), (end - 1536, 1024, 2), (end + 100, 924, 3), (512 + 1024 + 99, 925, 1),
    ]:  # fmt: skip
        tar.write_bytes(whole[:size])
        message = f"x.tar is cut short: {missing:,} bytes or more are missing, after {files} whole files; copy or"
        with pytest.raises(ValueError, match=message):
            splits(tar)
    tar.write_bytes(whole[: end + 512])
    assert len(only(tar)) == 3


def odd(name, **fields):
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def test_links_and_devices_are_passed_over(tmp_path):
    links = [(odd(f"a/{kind}.jpg", type=kind.encode(), linkname="/etc/passwd"), b"") for kind in "123456"]
    assert read(only(put(tmp_path / "x.tar", [*links, ("a/0.jpg", b"0"), *links]))) == [(b"0", "a")]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("/a/1.jpg", b"")], "x.tar holds /a/1.jpg, a name that leads out of its folder; pack it again"),
        ([("a/../../1.jpg", b"")], r"x.tar holds a/../../1.jpg, a name that leads out of its folder"),
        (
            [(odd("a/1.jpg", type=tarfile.GNUTYPE_SPARSE), b"")],
            "x.tar holds the sparse file a/1.jpg, which is not read",
        ),
        ([], "x.tar has no images; check the path"),
        ([("a/1.tar", b""), ("a/1.cls", b"1")], "x.tar has no images; check the path"),
        ([("1.jpg", b""), ("1.cls", b"1"), ("2.jpg", b"")], "x.tar: 2.jpg has no label beside it"),
        ([("1.jpg", b""), ("1.cls", b"1"), ("a/1.jpg", b"")], "x.tar: a/1.jpg has no label beside it"),
        (
            [("1.jpg", b""), ("1.cls", b"1"), ("1.png", b"")],
            "x.tar holds several images of the stem 1; give each its own",
        ),
        ([("1.jpg", b""), ("1.cls", b"1"), ("2.jpg", b""), ("2.cls", b"")], "x.tar: 2.jpg has no label beside it"),
        ([("a\x1b/1.jpg", b"")], r"x.tar has a class of an unreadable name, 'a\\x1b'; rename it"),
        ([("train/a/1.jpg", b""), ("a/1.jpg", b"")], "a/1.jpg is in none of train, val and test, though others are"),
    ],
)
def test_what_a_tar_must_not_hold(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        splits(put(tmp_path / "x.tar", members))


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[" * 100_000, b'{"label": {}}', b'{"caption": "x"}', b"0.5"])
def test_files_beside_the_images_that_hold_no_label_are_none(tmp_path, content):
    members = {"a/1.jpg": b"1", "a/1.json": content, "a/2.jpg": b"2", "a/1.txt": b"\xff", "a/2.txt": b"x" * 2**21}
    assert read(only(put(tmp_path / "x.tar", members))) == [(b"1", "a"), (b"2", "a")]


def test_places_without_tars_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.tar", tmp_path.joinpath("/dev/null")):
        with pytest.raises(ValueError, match=r"is no tar, nor a folder with some \(.tar, .tar.gz, .tgz\); check"):
            splits(path)
    for content in (b"", b"PK\x03\x04" + bytes(2000), json.dumps(PETS, default=str).encode() * 9):
        (tmp_path / "x.tar").write_bytes(content)
        with pytest.raises(ValueError, match=r"x.tar is damaged, or no tar"):
            splits(tmp_path / "x.tar")


def test_a_tar_that_changes_while_it_is_used_is_noticed(tmp_path, monkeypatch):
    tar = put(tmp_path / "x.tar", {"a/1.jpg": bytes(1000), "a/2.jpg": b""})
    source = only(tar)
    with tar.open("r+b") as file:
        file.truncate(700)
    with pytest.raises(ValueError, match=r"x.tar was cut short while it was used: .*a/1.jpg is not whole"):
        source[0]
    again = pickle.loads(pickle.dumps(source))
    tar.unlink()
    with pytest.raises(ValueError, match=r"x.tar cannot be read .No such file or directory.; check the disk"):
        again[1]
    monkeypatch.setattr(shards, "BYTES", 999)
    with pytest.raises(ValueError, match=r"a/1.jpg has 1,000 bytes, more than the 999 that an image may have"):
        source[0]


def test_damage_is_refused_or_harmless(tmp_path):
    whole, rng, tar = packed(PETS, form=tarfile.GNU_FORMAT), random.Random(2), tmp_path / "x.tar"
    refused = []
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data) - 8192)] ^= rng.randrange(1, 256)
        tar.write_bytes(data)
        try:
            assert sum(len(read(source)) for source in splits(tar).values()) <= 4
        except ValueError as error:
            refused.append(str(error))
    assert 25 < len(refused) < 100
    assert [message for message in refused if str(tar) not in message] == []

"""Hugging Face data sets on disk and Parquet tables: their layouts, columns and labels; damage is refused."""

import json
import os
import pickle
import random
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_source import targets

from vitrail.data.sources.huggingface import parquet, splits

NAMES = ["dog", "cat", "emu"]
LABEL = datasets.ClassLabel(names=NAMES)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def folder(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache") / "vitrail"
    monkeypatch.setenv("VITRAIL_CACHE", str(place))
    return place


def images(count, start=0):
    return pa.array([{"bytes": b"%d" % row, "path": f"{row}.png"} for row in range(start, start + count)], IMAGE)


def table(count, start=0, **more):
    labels = pa.array([row % 3 for row in range(start, start + count)], pa.int64())
    return pa.table({"image": images(count, start), "label": labels, **more})


def featured(found, **features):
    """The table with Hugging Face's features in its metadata."""
    known = datasets.Features.from_arrow_schema(found.schema) | {"image": datasets.Image(), "label": LABEL, **features}
    info = {"info": {"features": datasets.Features(known).to_dict()}}
    return found.replace_schema_metadata({"huggingface": json.dumps(info)})


def save(folder, found, **how):
    """Saved to disk by the library, with the features of the table."""
    features = datasets.Features.from_arrow_schema(found.schema)
    datasets.Dataset(found, datasets.DatasetInfo(features=features)).save_to_disk(str(folder), **how)
    return folder


def write(path, found, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(found, path, **how)
    return path


KINDS = {
    "saved": lambda root, found: splits(save(root / "d", found), None, None),
    "parquet": lambda root, found: parquet(write(root / "d.parquet", found), None, None),
}


@pytest.fixture(params=KINDS)
def read(request, tmp_path):
    """The only source of a table that is saved in either way."""
    return lambda found: KINDS[request.param](tmp_path, found)["all"]


def stream(path, found, **options):
    """An Arrow file with 3 rows to a batch."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, found.schema, **options) as writer:
        writer.write_table(found, max_chunksize=3)


def sample(source, count):
    """Every record, in any order."""
    assert (len(source), source.class_names, source.targets) == (count, tuple(NAMES), "class")
    for row in random.Random(0).sample(range(count), count):
        content, target, name, _ = source[row]
        assert (content, target, name) == (b"%d" % row, row % 3, source.name(row))
        assert name.endswith(f"] ({row}.png)")


@pytest.mark.parametrize("shards", [1, 4])
def test_every_saved_record_is_found_in_its_batch_and_file(tmp_path, shards, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = save(tmp_path / "a #%20b", featured(table(22)), num_shards=shards)
    for file in place.glob("*.arrow"):
        stream(file, pa.ipc.open_stream(file.read_bytes()).read_all())
    source = splits(place.relative_to(tmp_path), None, None)["all"]
    sample(source, 22)
    assert source.name(21).startswith(f"a #%20b/data-{shards - 1:05d}-of-{shards:05d}.arrow[{[21, 4][shards == 4]}]")
    assert len(pickle.dumps(source)) < 4000


@pytest.mark.parametrize("compression", ["snappy", "none", "zstd"])
def test_every_record_of_parquet_is_found_and_laid_out_once(tmp_path, compression, folder, capsys):
    file = write(tmp_path / "t.parquet", featured(table(200)), row_group_size=70, compression=compression)
    sample(parquet(file, None, None)["all"], 200)
    assert "t.parquet is unpacked once" in capsys.readouterr().err
    (place,) = folder.iterdir()
    before = place.stat()
    assert parquet(file, None, None)["all"].name(150) == f"{file}[150] (150.png)"
    assert capsys.readouterr().err == ""
    assert (place.stat().st_ino, place.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write(file, featured(table(5, start=5)))
    assert parquet(file, None, None)["all"][4].image == b"9"


def test_the_splits_of_a_dict_under_any_of_their_names(tmp_path):
    counts = {"train": 5, "validation": 2, "testing": 3, "unsupervised": 9}
    for name, count in counts.items():
        save(tmp_path / name, featured(table(count)))
    listed = tmp_path / "dataset_dict.json"
    listed.write_text(json.dumps({"splits": [*counts]}))
    found = splits(tmp_path, None, None)
    assert {split: len(source) for split, source in found.items()} == {"train": 5, "val": 2, "test": 3}
    save(tmp_path / "val", featured(table(1)))
    listed.write_text(json.dumps({"splits": ["val", "validation"]}))
    with pytest.raises(ValueError, match=f"{tmp_path.name} has .*val.*validation"):
        splits(tmp_path, None, None)


@pytest.mark.parametrize(
    ("labels", "feature", "names", "expected"),
    [
        (pa.array([2, -1, None, 0]), LABEL, NAMES, [2, None, None, 0]),
        (pa.array([[0, 1], [], None, [2, 2]]), datasets.List(LABEL), NAMES, [(0, 1), (), (), (2,)]),
        (pa.array([[0], [1]], pa.large_list(pa.int64())), datasets.LargeList(LABEL), NAMES, [(0,), (1,)]),
        (pa.array([10, 9, 10, 9], pa.uint16()), None, ["9", "10"], [1, 0, 1, 0]),
        (pa.array(["b", "a", "b", None]), None, ["a", "b"], [1, 0, 1, None]),
        (pa.array([True, False]), None, ["False", "True"], [1, 0]),
        (pa.array([1.0, 0.0]), None, ["0", "1"], [1, 0]),
        (pa.array([["b", "a"], ["a"], []]), None, ["a", "b"], [(1, 0), (0,), ()]),
        (pa.nulls(2, pa.string()), None, [], [None] * 2),
    ],
)
def test_labels_of_every_kind(read, labels, feature, names, expected):
    found = pa.table({"image": images(len(labels)), "label": labels})
    source = read(featured(found, label=feature) if feature else found)
    assert (list(source.class_names), targets(source)) == (names, expected)
    assert source.targets == ("classes" if isinstance(expected[0], tuple) else "class" if names else "none")


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        (pa.array([0, 3, 1]), LABEL, r"\[1\].*: the label is 3, but there are 3 class names"),
        (pa.array([[0], [1, -1], []]), datasets.List(LABEL), r"\[1\].*: the label is \['cat', None\]"),
        (pa.array([1.0, 2.0, 0.5]), None, r"\[2\].*: the label is 0.5"),
        (pa.array([{"x": 1}] * 3), None, r"\[0\].*: the label is {'x': 1}"),
    ],
)
def test_what_is_not_a_label_names_its_row(read, labels, feature, message):
    found = pa.table({"image": images(3), "label": labels})
    with pytest.raises(ValueError, match=message):
        read(featured(found, label=feature) if feature else found)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string(), pa.large_string(), IMAGE])
def test_images_are_bytes_or_paths(read, tmp_path, kind):
    for place in (tmp_path, tmp_path / "d"):
        place.mkdir(exist_ok=True)
        (place / "x.png").write_bytes(b"x")
    values, contents = ["x.png", str(tmp_path / "x.png"), "y.png", None], [b"x", b"x", "y.png does not exist"]
    if str(kind).endswith("binary"):
        contents = [value.encode() for value in values[:3]]
    elif kind is IMAGE:
        values, contents[2] = [{"bytes": b"y" if v == "y.png" else None, "path": v} for v in values], b"y"
    source = read(pa.table({"image": pa.array(values, kind), "label": ["a", "b", "a", "b"]}))
    for row, content in enumerate([*contents, r"\[3\] has neither"]):
        if isinstance(content, bytes):
            assert source[row].image == content
        else:
            with pytest.raises(ValueError, match=content):
                source[row]


def test_columns_are_found_by_features_and_types_before_names(tmp_path):
    found = table(3, file=["a", "b", "c"], fine=pa.array([0, 1, 0], pa.int64()))
    fine = datasets.ClassLabel(names=["x", "y"])
    file = write(tmp_path / "t.parquet", featured(found, fine=fine))
    assert parquet(file, None, None)["all"].class_names == tuple(NAMES)
    assert parquet(file, "image", "fine")["all"].class_names == ("x", "y")
    assert parquet(write(file, found), None, None)["all"].class_names == ("0", "1", "2")  # image is bytes, file is not
    found = found.rename_columns(["photo", "coarse", "file", "fine"])
    found = featured(found, coarse=LABEL, fine=fine, photo=datasets.Image())
    for kind, place in ((parquet, write(file, found)), (splits, save(tmp_path / "d", found))):
        with pytest.raises(ValueError, match="coarse, fine; name one as label_column"):
            kind(place, "photo", None)
        assert targets(kind(place, "photo", "coarse")["all"]) == [0, 1, 2]
        with pytest.raises(ValueError, match=f"{place.name}.* 'nothing', but photo, coarse, file, fine"):
            kind(place, "nothing", None)


@pytest.mark.parametrize("kind", [pa.int64(), pa.bool_(), pa.float32()])
def test_columns_of_0_and_1_are_labels_where_no_other_column_is(read, kind):
    bits = {name: pa.array([row % 3 == place for row in range(6)]).cast(kind) for place, name in enumerate("xyz")}
    for more in ({}, {"id": range(6)}, {"id": range(1, 7)}, {"note": ["b"] * 6}):
        found = read(pa.table({"image": images(6), **more, **bits}))
        assert (found.class_names, targets(found)) == (("x", "y", "z"), [0, 1, 2, 0, 1, 2])
    several = read(pa.table({"image": images(6), **bits, "x": pa.array([1] * 6).cast(kind)}))
    assert targets(several) == [(0,), (0, 1), (0, 2)] * 2
    assert read(pa.table({"image": images(6), "x": bits["x"], "width": range(6)})).targets == "none"
    vectors = pa.array([[row % 3 == place for place in range(3)] for row in range(6)]).cast(pa.list_(kind))
    assert targets(read(pa.table({"image": images(6), "label": vectors}))) == [0, 1, 2, 0, 1, 2]


def test_what_does_not_go_together_is_refused(tmp_path):
    write(tmp_path / "a" / "train-0.parquet", table(3))
    write(tmp_path / "a" / "train-1.parquet", table(3).rename_columns(["image", "other"]))
    (file,) = save(tmp_path / "e", table(3)).glob("*.arrow")
    stream(file, table(3), options=pa.ipc.IpcWriteOptions(compression="lz4"))
    numbers = table(3).set_column(0, "image", [[1, 2, 3]])
    for kind, place, columns, words in [
        (parquet, tmp_path / "a", (None, None), "train-1.parquet .*label"),
        (splits, save(tmp_path / "d", table(0)), (None, None), "d has no images"),
        (parquet, write(tmp_path / "t.parquet", table(0)), (None, None), "t.parquet has no images"),
        (parquet, write(tmp_path / "n.parquet", numbers), ("image", "label"), "n.parquet: .* int64"),
        (splits, tmp_path / "e", (None, None), f"{file.name} is compressed"),
    ]:
        with pytest.raises(ValueError, match=words):
            kind(place, *columns)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", None), ("state.json", "[]"), ("state.json", "[" * 100_000), ("state.json", {"_data_files": []}),
        ("state.json", {"_data_files": [{"filename": "../x.arrow"}]}), ("dataset_info.json", "{"),
        ("dataset_dict.json", {"splits": 3}), ("dataset_dict.json", {"splits": ["a"]}),
    ],
)  # fmt: skip
def test_what_describes_the_files_is_checked(tmp_path, name, content):
    folder = save(tmp_path / "d", table(3))
    (data,) = folder.glob("*.arrow")
    (tmp_path / "x.arrow").write_bytes(data.read_bytes())
    if name == "dataset_dict.json":
        (folder / "dataset_info.json").rename(folder / name)
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / name).read_text()) | content)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=str(folder)) as caught:
        splits(folder, None, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "read_least", "refused_least"), [("saved", 5, 50), ("parquet", 3, 30)])
def test_damaged_files_are_refused_and_never_crash(tmp_path, kind, read_least, refused_least):
    """What a damaged stream's offsets lead to, outside the file, would end the process."""
    if kind == "saved":
        reader, place, last = splits, save(tmp_path / "d", table(30)), 8
        (file,) = place.glob("*.arrow")
        stream(file, table(30))
    else:
        reader, last = parquet, 0
        place = file = write(tmp_path / "t.parquet", table(40), row_group_size=16)
    whole, rng, refused = file.read_bytes(), random.Random(3), []
    for content in (*(whole[:size] for size in (0, 7, 300, -8, -9, len(whole) // 2)), b"image,label\na,b\n"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=file.name):
            reader(place, None, None)
    for _ in range(120):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data) - last)] ^= rng.randrange(1, 256)
        file.write_bytes(data)
        try:
            for source in reader(place, None, None).values():
                assert len([source[index] for index in range(len(source))]) > 0
        except ValueError as error:
            refused.append(str(error))
    assert refused_least < len(refused) < 120 - read_least
    assert [message for message in refused if str(place) not in message or "\n" in message] == []


def test_nothing_else_is_written_or_printed(tmp_path):
    """Neither files outside the cache folder, nor progress bars, nor anything over the network."""
    write(tmp_path / "d" / "train-0.parquet", featured(table(3)))
    save(tmp_path / "e", featured(table(40)), num_shards=20)  # many files would have a bar
    (home := tmp_path / "home").mkdir()
    script = """if True:
        import socket, sys
        def refuse(*arguments): raise AssertionError("network")
        socket.socket.connect = socket.getaddrinfo = refuse
        from pathlib import Path
        from vitrail.data.sources.huggingface import parquet, splits
        print(len(parquet(Path("d"), None, None)["train"]), len(splits(Path("e"), None, None)["all"]))"""
    command, environment = [sys.executable, "-c", script], {**os.environ, "HOME": str(home)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("3 40\n", 0), done.stderr
    assert done.stderr.count("\n") == 1
    assert [*home.rglob("*")] == []


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch):
    save(tmp_path / "d", table(3))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"/d needs `datasets`.* pip install 'vitrail\[data\]'"):
        splits(tmp_path / "d", None, None)


def test_lists_of_0_and_1_as_long_as_there_are_classes_say_which_are_there(tmp_path):
    """They were taken for the first two classes."""
    several = datasets.Sequence(LABEL)
    one, many, numbers = [[0, 1, 0], [1, 0, 0]], [[0, 1, 1], [0, 0, 0]], [[0, 1], [2]]
    for rows, expected in ((one, [1, 0]), (many, [(1, 2), ()]), (numbers, [(0, 1), (2,)])):
        found = featured(pa.table({"image": images(2), "label": pa.array(rows)}), label=several)
        source = splits(save(tmp_path / str(expected), found), None, None)["all"]
        assert (source.class_names, targets(source)) == (tuple(NAMES), expected)

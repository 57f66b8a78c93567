"""Parquet tables as Sources: rows of the Hugging Face Hub's kind, laid out once; paths; damage."""

import json
import random
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vitrail.data.sources.cache as cache
from vitrail.data.sources.source import Source
from vitrail.data.sources.table import splits

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LABEL = {"_type": "ClassLabel", "names": ["dog", "cat", "emu"]}


@pytest.fixture(autouse=True)
def folder(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache") / "vitrail"
    monkeypatch.setenv("VITRAIL_CACHE", str(place))
    return place


def hub(rows, features=True, start=0, **more):
    """Rows as the Hub has them: images as structs, ClassLabel's names in the metadata."""
    values = [{"bytes": b"%d" % row, "path": f"{row}.png"} for row in range(start, start + rows)]
    labels = [row % 3 for row in range(start, start + rows)]
    table = pa.table({"image": pa.array(values, IMAGE), "label": pa.array(labels, pa.int64()), **more})
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": LABEL}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(info)}) if features else table


def write(path, table, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **how)
    return path


def only(path, *columns):
    (found,) = splits(path, *columns or (None, None)).items()
    assert found[0] == "all"
    assert isinstance(found[1], Source)
    return found[1]


def targets(source):
    return [source.target(index) for index in range(len(source))]


@pytest.mark.parametrize("compression", ["snappy", "none", "zstd"])
def test_every_record_is_found_however_it_is_packed(tmp_path, compression):
    file = write(tmp_path / "t.parquet", hub(200), row_group_size=70, compression=compression)
    source = only(file)
    assert (len(source), source.class_names, source.multi_label) == (200, ("dog", "cat", "emu"), False)
    for row in random.Random(0).sample(range(200), 200):
        assert source[row] == (b"%d" % row, row % 3, f"{file}[{row}] ({row}.png)")


def test_images_are_laid_out_once(tmp_path, folder, capsys):
    file = write(tmp_path / "t.parquet", hub(5))
    only(file)
    assert "t.parquet is unpacked once" in capsys.readouterr().err
    (place,) = folder.iterdir()
    before = place.stat()
    assert only(file)[4][0] == b"4"
    assert capsys.readouterr().err == ""
    assert (place.stat().st_ino, place.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write(file, hub(5, start=5))
    assert only(file)[4][0] == b"9"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/validation-0.parquet"],
         {"train": 2, "val": 1}),
        (["train.parquet", "test.parquet"], {"train": 1, "test": 1}),
        (["plain_text/train-0.parquet", "plain_text/test-0.parquet"], {"train": 1, "test": 1}),
        (["default/Train/0000.parquet", "default/test/0000.parquet"], {"train": 1, "test": 1}),
        (["0000.parquet", "0001.parquet", "0002.parquet"], {"all": 3}),
    ],
)  # fmt: skip
def test_the_layouts_of_the_hub(tmp_path, files, expected):
    for number, file in enumerate(files):
        write(tmp_path / file, hub(4, start=4 * number))
    found = splits(tmp_path, None, None)
    assert {split: len(source) / 4 for split, source in found.items()} == expected
    contents = [source[index][0] for source in found.values() for index in range(len(source))]
    assert sorted(contents, key=int) == [b"%d" % row for row in range(4 * len(files))]
    assert all(source.class_names == ("dog", "cat", "emu") for source in found.values())


def test_a_column_divides_a_table(tmp_path):
    parts = ["train", "validation", "train", "test", "train"]
    found = splits(write(tmp_path / "t.parquet", hub(5, split=pa.array(parts).dictionary_encode())), None, None)
    assert {split: targets(source) for split, source in found.items()} == {"train": [0, 2, 1], "val": [1], "test": [0]}
    assert [found["train"][index][0] for index in range(3)] == [b"0", b"2", b"4"]
    with pytest.raises(ValueError, match=r"t.parquet\[1\]: its split is 'x', which is none of train, val and test"):
        splits(write(tmp_path / "t.parquet", hub(2, split=["test", "x"])), None, None)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_paths_are_relative_to_their_table(tmp_path, kind, folder):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.png").write_bytes(b"x")
    table = pa.table({"path": pa.array(["x.png", "y.png"]).cast(kind), "species": ["emu", "cat"]})
    write(tmp_path / "data" / "train.parquet", table)
    source = splits(tmp_path, None, None)["train"]
    assert source[0] == (b"x", 1, str(tmp_path / "data" / "x.png"))
    with pytest.raises(ValueError, match=r"train.parquet names what cannot be read: .*y.png does not exist"):
        source[1]
    assert not folder.exists()
    table = pa.table({"path": pa.array(["x.png", None]).cast(kind), "species": ["emu", "cat"]})
    with pytest.raises(ValueError, match=r"train.parquet\[1\]: the image is 'None', which is no path"):
        splits(write(tmp_path / "data" / "train.parquet", table), None, None)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())])
def test_bytes_without_a_struct(tmp_path, kind):
    table = pa.table({"jpg": pa.array([b"a", b"b", b"a"]).cast(kind), "cls": [[1, 2], [], [2]]})
    source = only(write(tmp_path / "t.parquet", table))
    assert [source[row][0] for row in range(3)] == [b"a", b"b", b"a"]
    assert (source.class_names, targets(source)) == (("1", "2"), [(0, 1), (), (1,)])


def test_labels_and_their_errors_are_those_of_arrow(tmp_path):
    assert only(write(tmp_path / "t.parquet", hub(12, features=False))).class_names == ("0", "1", "2")
    table = hub(3).set_column(1, "label", pa.array([0, 5, 1]))
    with pytest.raises(ValueError, match=r"t.parquet\[1\]: the label is 5, but there are 3 class names"):
        splits(write(tmp_path / "t.parquet", table), None, None)
    with pytest.raises(ValueError, match=r"t.parquet: the column label holds int64; images are bytes or paths"):
        splits(write(tmp_path / "t.parquet", hub(3, cls=[1, 2, 3])), "label", "cls")
    with pytest.raises(ValueError, match=r"t.parquet has no images; check the path"):
        splits(write(tmp_path / "t.parquet", hub(0)), None, None)


def test_files_of_one_split_are_alike(tmp_path):
    write(tmp_path / "train-0.parquet", hub(3))
    write(tmp_path / "train-1.parquet", hub(3).rename_columns(["image", "other"]))
    with pytest.raises(
        ValueError, match=r"train-1.parquet should have one column 'label', as the files beside it have"
    ):
        splits(tmp_path, None, None)


def test_the_folder_for_images_must_have_room_and_be_writable(tmp_path, monkeypatch):
    file = write(tmp_path / "t.parquet", hub(3))
    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(
            ValueError, match=r"t.parquet takes [0-9]+ bytes or more when it is unpacked, but 1,000 are"
        ):
            splits(file, None, None)
    monkeypatch.setenv("VITRAIL_CACHE", str(file / "below a file"))
    with pytest.raises(ValueError, match=r"t.parquet is to be unpacked into .*, which cannot be written"):
        splits(file, None, None)


def test_damaged_files_are_refused(tmp_path):
    file = write(tmp_path / "t.parquet", hub(40), row_group_size=16)
    whole, rng = file.read_bytes(), random.Random(5)
    for content in (b"", b"PAR1", whole[:-9], whole[: len(whole) // 2], b"image,label\na,b\n"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"t.parquet cannot be read as Parquet"):
            splits(file, None, None)
    read, refused = 0, []
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        file.write_bytes(data)
        try:
            source = only(file)
            read += len([source[index] for index in range(len(source))]) > 0
        except ValueError as error:
            refused.append(str(error))
    assert read > 3
    assert len(refused) > 30
    assert [message for message in refused if str(file) not in message] == []

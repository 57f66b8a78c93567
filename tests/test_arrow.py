"""Hugging Face data sets on disk, in the layout of `datasets.save_to_disk`, built here by pyarrow."""

import json
import pickle
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from vitrail.data.sources.arrow import Embedded, class_names, features_of, splits
from vitrail.data.sources.source import Source

NAMES = ["dog", "cat", "emu"]
LABEL = {"names": NAMES, "_type": "ClassLabel"}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(count, start=0):
    return pa.array([{"bytes": b"%d" % row, "path": f"{row}.png"} for row in range(start, start + count)], IMAGE)


def stream(path, table, rows=3, **options):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=rows)


def save(folder, table, features=None, shards=1):
    """One Dataset: `shards` Arrow files of 3 rows to a batch, state.json and dataset_info.json."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]
    for shard, name in enumerate(names):
        edges = [len(table) * edge // shards for edge in (shard, shard + 1)]
        stream(folder / name, table.slice(edges[0], edges[1] - edges[0]))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    features = {"image": {"_type": "Image"}, "label": LABEL} if features is None else features
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def labelled(count):
    return pa.table({"image": images(count), "label": pa.array([row % 3 for row in range(count)], pa.int64())})


def only(path, *columns):
    (found,) = splits(path, *columns or (None, None)).items()
    assert found[0] == "all"
    assert isinstance(found[1], Source)
    return found[1]


def targets(source):
    return [source.target(index) for index in range(len(source))]


@pytest.mark.parametrize("shards", [1, 4])
def test_every_record_is_found_in_its_batch_and_file(tmp_path, shards):
    source = only(save(tmp_path / "d", labelled(22), shards=shards))
    assert (len(source), source.class_names, source.multi_label) == (22, tuple(NAMES), False)
    for row in random.Random(0).sample(range(22), 22):
        content, target, name = source[row]
        assert (content, target, name) == (b"%d" % row, row % 3, source.name(row))
        assert name.endswith(f" ({row}.png)")
    last = 21 - 22 * (shards - 1) // shards
    assert source.name(21).startswith(str(tmp_path / "d" / f"data-{shards - 1:05d}-of-{shards:05d}.arrow[{last}]"))
    with pytest.raises(IndexError, match="there are images 0 to 21, but 22 was asked for"):
        source[22]


def test_the_splits_of_a_dict_under_any_of_their_names(tmp_path):
    for name, count in {"train": 5, "validation": 2, "testing": 3, "unsupervised": 9}.items():
        save(tmp_path / name, labelled(count))
    names = ["train", "validation", "testing", "unsupervised"]
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": names}))
    assert {split: len(source) for split, source in splits(tmp_path, None, None).items()} == {
        "train": 5, "val": 2, "test": 3,
    }  # fmt: skip
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["unsupervised"]}))
    assert len(only(tmp_path)) == 9


def test_sources_survive_pickling_and_threads_share_them(tmp_path):
    source = only(save(tmp_path / "d", labelled(90), shards=2))
    again = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(again.__getitem__, range(90))) == [source[index] for index in range(90)]


@pytest.mark.parametrize(
    ("labels", "feature", "names", "expected"),
    [
        (pa.array([2, -1, None, 0]), LABEL, NAMES, [2, -1, -1, 0]),
        (pa.array([[0, 1], [], None, [2, 2]]), {"feature": LABEL, "_type": "Sequence"}, NAMES, [(0, 1), (), (), (2,)]),
        (pa.array([[0], [1], [2], []]), {"feature": LABEL, "_type": "List"}, NAMES, [(0,), (1,), (2,), ()]),
        (pa.array([[0], [1], [2], []], pa.large_list(pa.int8())), [LABEL], NAMES, [(0,), (1,), (2,), ()]),
        (pa.array([10, 9, 10, 9], pa.uint16()), {"_type": "Value"}, ["9", "10"], [1, 0, 1, 0]),
        (pa.array(["b", "a", "b", "b"]), None, ["a", "b"], [1, 0, 1, 1]),
        (pa.array(["b", "a", "b", "b"], pa.large_string()), None, ["a", "b"], [1, 0, 1, 1]),
        (pa.array(["b", "a", "b", "b"]).dictionary_encode(), None, ["a", "b"], [1, 0, 1, 1]),
        (pa.array([True, False, True, True]), None, ["False", "True"], [1, 0, 1, 1]),
        (pa.array([1.0, 0.0, 1.0, 1.0]), None, ["0", "1"], [1, 0, 1, 1]),
        (pa.array([["b", "a"], ["a"], [], ["a"]]), None, ["a", "b"], [(1, 0), (0,), (), (0,)]),
    ],
)
def test_labels_of_every_kind(tmp_path, labels, feature, names, expected):
    features = {"image": {"_type": "Image"}, **({"label": feature} if feature else {})}
    source = only(save(tmp_path / "d", pa.table({"image": images(4), "label": labels}), features))
    assert (list(source.class_names), targets(source)) == (names, expected)
    assert source.multi_label == isinstance(expected[0], tuple)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string(), pa.large_string()])
def test_images_are_bytes_or_paths(tmp_path, kind):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.png").write_bytes(b"x")
    values = ["x.png", str(tmp_path / "d" / "x.png"), "y.png"]
    paths = "string" in str(kind)
    table = pa.table({"image": pa.array(values, kind), "label": ["a", "b", "a"]})
    source = only(save(tmp_path / "d", table, {}))
    assert [source[row][0] for row in range(2)] == [b"x", b"x"] if paths else [value.encode() for value in values]
    if paths:
        with pytest.raises(ValueError, match=r"y.png does not exist"):
            source[2]


def test_a_struct_without_bytes_has_a_path(tmp_path):
    (tmp_path / "x.png").write_bytes(b"x")
    values = [{"bytes": None, "path": str(tmp_path / "x.png")}, {"bytes": b"y", "path": None}, None]
    table = pa.table({"image": pa.array(values, IMAGE), "label": ["a", "b", "a"]})
    source = only(save(tmp_path / "d", table, {}))
    assert [source[row][0] for row in range(2)] == [b"x", b"y"]
    assert source.name(1).endswith("of-00001.arrow[1]")
    with pytest.raises(ValueError, match=r"arrow\[2\] has neither bytes nor a path; take the row out"):
        source[2]


def test_columns_are_found_by_features_and_types_before_names(tmp_path):
    table = labelled(3).append_column("file", pa.array(["a", "b", "c"])).append_column("fine", pa.array([0, 1, 0]))
    features = {"image": {"_type": "Image"}, "fine": {"_type": "ClassLabel", "names": ["x", "y"]}, "label": LABEL}
    assert only(save(tmp_path / "d", table, features)).class_names == tuple(NAMES)
    assert only(save(tmp_path / "d", table, features), "image", "fine").class_names == ("x", "y")
    only(save(tmp_path / "d", table, {}))  # the one of known name that holds bytes
    table = table.rename_columns(["photo", "coarse", "file", "fine"]).drop_columns("file")
    features = {"fine": features["fine"], "coarse": LABEL}
    with pytest.raises(ValueError, match="labels could be in the columns coarse, fine; name one as label_column"):
        splits(save(tmp_path / "d", table, features), None, None)
    assert targets(only(tmp_path / "d", None, "coarse")) == [0, 1, 2]


def test_metadata_that_says_nothing_is_passed_over():
    features = {"label": LABEL}
    assert features_of({b"huggingface": json.dumps({"info": {"features": features}}).encode()}) == features
    for data in (
        None,
        {},
        {b"huggingface": b"{"},
        {b"huggingface": b"[]"},
        {b"huggingface": b'{"info": {"features": 1}}'},
    ):
        assert features_of(data) == {}
    for feature in (None, 1, [], {"_type": "ClassLabel"}, {"_type": "ClassLabel", "names": [1]}, {"names": ["a"]}):
        assert class_names(feature) is None


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        (pa.array([0, 3, 1]), LABEL, r"00001.arrow\[1\]: the label is 3, but there are 3 class names"),
        (pa.array([0, 1, -2]), LABEL, r"00001.arrow\[2\]: the label is -2, but there are 3 class names"),
        (pa.array([[0], [1, -1], []]), LABEL, r"arrow\[1\]: the label is \[1, -1\]; a list names classes only"),
        (pa.array(["a", "b", None]), None, r"00001.arrow\[2\] has no label; add it, or take the row out"),
        (pa.array([1.0, 2.0, 0.5]), None, r"00001.arrow\[2\]: the label is 0.5; labels are names, whole numbers"),
        (pa.array([{"x": 1}] * 3), None, r"00001.arrow: the column of the labels holds struct<x: int64>; labels are"),
        (
            pa.array([[[1]]] * 3),
            None,
            r"the column of the labels holds list<item: list<item: int64>>; labels are names",
        ),
        (
            pa.array([b"x"] * 3),
            None,
            r"the column of the labels holds binary; labels are names, whole numbers, or lists",
        ),
    ],
)
def test_labels_that_are_none_name_their_row(tmp_path, labels, feature, message):
    features = {"image": {"_type": "Image"}, **({"label": feature} if feature else {})}
    with pytest.raises(ValueError, match=message):
        splits(save(tmp_path / "d", pa.table({"image": images(3), "label": labels}), features), None, None)


def test_damaged_streams_are_refused(tmp_path):
    folder = save(tmp_path / "d", labelled(30))
    (file,) = folder.glob("*.arrow")
    whole, rng = file.read_bytes(), random.Random(3)
    for size in (0, 7, 300, len(whole) - 8, len(whole) // 2):
        file.write_bytes(whole[:size])
        with pytest.raises(
            ValueError, match=r"00001.arrow (is cut short: it has no end mark|cannot be read as an Arrow)"
        ):
            splits(folder, None, None)
    read = refused = 0
    for _ in range(120):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data) - 8)] ^= rng.randrange(1, 256)
        file.write_bytes(data)
        try:
            source = only(folder)
            read += len([source[index] for index in range(len(source))]) > 0
        except ValueError:
            refused += 1
    assert read > 5
    assert refused > 50


def test_what_cannot_be_read_singly_or_holds_no_images_is_refused(tmp_path):
    folder = save(tmp_path / "d", labelled(3))
    (file,) = folder.glob("*.arrow")
    stream(file, labelled(3), options=pa.ipc.IpcWriteOptions(compression="lz4"))
    with pytest.raises(ValueError, match=r"00001.arrow is compressed, so that images cannot be read singly; save it"):
        splits(folder, None, None)
    for kind in (pa.array([1, 2, 3]), pa.array([{"x": b""}] * 3)):
        with pytest.raises(ValueError, match=r"00001.arrow: the column image holds .*; images are bytes or paths"):
            splits(save(folder, labelled(3).set_column(0, "image", kind)), None, None)
    with pytest.raises(ValueError, match="d has no images; check the path"):
        splits(save(folder, labelled(0)), None, None)
    save(folder, labelled(6), shards=2)
    stream(folder / "data-00001-of-00002.arrow", labelled(3).rename_columns(["image", "other"]))
    with pytest.raises(ValueError, match=r"00002.arrow has no column 'label', as the files beside it have"):
        splits(folder, None, None)
    stream(folder / "x.arrow", labelled(3))
    with pytest.raises(ValueError, match=r"x.arrow has no column 'photo'"):
        Embedded([(folder / "x.arrow", "x")], "photo", folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", None, "state.json cannot be read .No such file or directory.; save the data set again"),
        ("state.json", "{", "state.json is damaged; save the data set again"),
        ("state.json", "[]", "state.json is damaged"),
        ("state.json", "[" * 100_000, "state.json is damaged"),
        ("state.json", "{}", "state.json does not name the files beside it; save the data set again"),
        ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}', "state.json does not name the files beside it"),
        ("state.json", '{"_data_files": [{"filename": "/x.arrow"}]}', "state.json does not name the files beside it"),
        ("state.json", '{"_data_files": []}', "d has no images; check the path"),
        ("state.json", '{"_data_files": [{"filename": "x.arrow"}]}', "x.arrow cannot be read as an Arrow stream"),
        ("dataset_info.json", "{", "dataset_info.json is damaged; save the data set again"),
        ("dataset_dict.json", '{"splits": 3}', "dataset_dict.json does not name the files beside it"),
        ("dataset_dict.json", '{"splits": ["a", "b"]}', "d has the splits a, b, none of which is train, val or test"),
        ("dataset_dict.json", '{"splits": ["val", "Valid"]}', "d has both val and Valid; remove one of them"),
    ],
)
def test_what_describes_the_files_is_checked(tmp_path, name, content, message):
    folder = save(tmp_path / "d", labelled(3))
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        splits(folder, None, None)


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    save(tmp_path / "d", labelled(3))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ValueError, match=r"arrow is read by pyarrow, which is not installed: pip install 'vitrail\[data\]'"
    ):
        splits(tmp_path / "d", None, None)

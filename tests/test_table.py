"""CSV, TSV and JSONL as Sources: columns, separators, splits, several labels; every damage names its line."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sources import put
from test_source import targets

from vitrail.data.sources.open import Data, find_splits
from vitrail.data.sources.table import splits


def only(path, *columns):
    """The one source of a place that is not divided."""
    (found,) = splits(path, *columns or (None, None)).items()
    assert found[0] == "all"
    return found[1]


def named(source, folder):
    """(path below the folder, class) of each record."""
    return [
        (source.name(index).removeprefix(f"{folder}/"), source.class_names[source.target(index)])
        for index in range(len(source))
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "\ufeffimage,label\r\na.png,x\r\n\r\nb.png,y"),  # as Excel writes it
        ("t.csv", "image;label\na.png;x\nb.png;y\n"),  # and where the comma is for decimals
        ("t.csv", '"image","n, m","label"\n"a.png","1, ""2""","x"\n"b.png","\n","y"\n'),
        ("t.tsv", "label\timage\nx\ta.png\ny\tb.png\n"),
        ("t.CSV", "File Name,n,Species\na.png,1,x\nb.png,2,y\n"),
        ("t.jsonl", '{"image": "a.png", "label": "x"}\n\n{"label": "y", "image": "b.png", "more": [{}]}\n'),
        ("t.jsonl", '\ufeff{"file_name": "a.png", "category": "x"}\n{"file_name": "b.png", "category": "y"}'),
    ],
)
def test_tables_are_read_however_they_are_written(tmp_path, name, content):
    assert named(only(put(tmp_path, {name: content}) / name), tmp_path) == [("a.png", "x"), ("b.png", "y")]


field = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip).filter(bool)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(field, st.sampled_from(["a", 'b"', "c,d", "é"])), min_size=1, unique_by=lambda row: row[0]))
def test_jsonl_gives_back_every_path_and_label(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("table")
    (folder / "t.jsonl").write_text("".join(json.dumps({"image": p, "label": c}) + "\n" for p, c in rows))
    source = only(folder / "t.jsonl")
    assert [source.name(index) for index in range(len(rows))] == [str(folder / path) for path, _ in rows]
    assert [source.class_names[target] for target in targets(source)] == [c for _, c in rows]


def test_several_labels_in_texts_and_in_lists(tmp_path):
    source = only(put(tmp_path, {"t.csv": "image,label\na,sun|sea\nb,sea\nc,\nd,sea ; sand;sea\n"}) / "t.csv")
    assert (source.class_names, targets(source)) == (("sand", "sea", "sun"), [(2, 1), (1,), (), (1, 0)])
    rows = [json.dumps({"image": f"{n}", "label": label}) for n, label in enumerate((["b|c", "a"], [], "a", None))]
    source = only(put(tmp_path, {"t.jsonl": "\n".join(rows)}) / "t.jsonl")
    assert (source.class_names, targets(source)) == (("a", "b|c"), [(1, 0), (), (0,), ()])


def test_images_are_looked_for_when_they_are_read(tmp_path):
    rows = f"image,label\nmissing.png,x\n.,x\n{tmp_path}/a b/ö.png,x\nc.png,x\n"
    source = splits(put(tmp_path, {"data/train.csv": rows}), None, None)["train"]
    for index, words in enumerate((r"train.csv: .*missing.png does not exist", r"train.csv: .* is a folder")):
        with pytest.raises(ValueError, match=words):
            source[index]
    put(tmp_path, {"a b/ö.png": b"found", "data/c.png": b"beside the table"})
    assert source[2] == (b"found", 0, f"{tmp_path}/a b/ö.png", None)
    assert source[3].image == b"beside the table"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "t.csv has no images"),
        ("a.png,cat\nb.png,dog\n", "t.csv, line 2: .* image_column: a.png, cat"),
        ("image,label\na,x\nb,y,z\n", "t.csv, line 3: "),
        ("image,label\n ,x\n", "t.csv, line 2: the image is ' '"),
        ("image,label,split\na,x,train\nb,y,extra\n", "t.csv, line 3: the split is 'extra'"),
        ('image,label\na,x\n"b,y\n', "t.csv is damaged after line 2"),
        ('image,label\na,x\n"b"c,y\n', "t.csv is damaged after line 2"),
        ("image,label\n" + "a" * 200_000 + ",x\n", "t.csv is damaged after line 1"),
        ("image,label\na,x\nb,\xe9\n".encode("latin-1"), "t.csv is not UTF-8, somewhere after line 1"),
        ("image,label\na,x\n".encode("utf-16"), "t.csv is not UTF-8"),
    ],
)
def test_damaged_csv_names_its_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        splits(put(tmp_path, {"t.csv": content}) / "t.csv", None, None)


@pytest.mark.parametrize(
    "line",
    [
        "[1]", "[" * 100_000, '{"image": "b", "label": 1%s}' % ("0" * 5000), b"\xff\xfe",
        '{"label": 1}', '{"image": 3, "label": 1}', '{"image": "\\ud800", "label": 1}', '{"image": "b", "label": 0.5}',
    ],
)  # fmt: skip
def test_damaged_jsonl_names_its_line(tmp_path, line):
    line = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(ValueError, match=r"t.jsonl, line 2: "):
        splits(put(tmp_path, {"t.jsonl": b'{"image": "a", "label": 1}\n' + line}) / "t.jsonl", None, None)


IMAGES = {f"part_{1 + n // 3}/{n}.png": b"%d" % n for n in range(6)}
HOT = [[int(k == n % 3) for k in range(3)] for n in range(6)]
ROWS = "".join(f"{n}.png,{'xyz'[n % 3]}\n" for n in range(6))


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("metadata.csv", "image,label\n" + ROWS), ("labels.tsv", ("id\tbreed\n" + ROWS).replace(",", "\t")),
        ("a.csv", "file;dx\r\n" + ROWS.replace(".png,", ";").replace("\n", "\r\n")),
        ("b.csv", "n,photo,x,y,z\n" + "".join(f"7,{n},{HOT[n][0]},{HOT[n][1]}.0,{HOT[n][2]}\n" for n in range(6))),
        ("c.jsonl", "".join(json.dumps({"f": f"./{n}.png", "label": HOT[n]}) + "\n" for n in range(6))),
    ],
)  # fmt: skip
def test_a_table_beside_images_gives_their_labels(tmp_path, table, text):
    """Folders part_1 and part_2 were classes."""
    place = put(tmp_path / "outer" / "place", {**IMAGES, table: text, "part_1/new.png": b"", "notes.txt": b""})
    for path in (place, place.parent, place / table):
        source = find_splits(Data(str(path)))["all"]
        classes = ("0", "1", "2") if table == "c.jsonl" else ("x", "y", "z")
        assert (source.class_names, targets(source)) == (classes, [0, 1, 2, 0, 1, 2])
        assert [example.image for example in source] == [*IMAGES.values()]
    found = find_splits(Data(str(place)))
    assert (table in found.notes[0], found.left_out) == (True, (f"1 image without a row in {table}",))


def test_columns_of_splits_are_known_by_what_they_hold_and_others_are_named(tmp_path):
    rows = "".join(f"{n}.png,x,{('Train', 'valid')[n % 2]},{n}\n" for n in range(6))
    found = find_splits(Data(str(put(tmp_path, {"t.csv": "image,label,fold,width\n" + rows}) / "t.csv")))
    assert {split: len(source) for split, source in found.items()} == {"train": 3, "val": 3}
    assert found.notes == ("columns of t.csv that are not read: width",)


def test_a_table_beside_class_folders_that_says_nothing_new_is_named(tmp_path):
    files = {f"train/{c}/{n}{c}.png": b"" for c in "ab" for n in range(2)} | {"val/a/9.png": b"", "val/b/8.png": b""}
    for text, words in [
        ("path,label\n" + "".join(f"{name},{name.split('/')[1]}\n" for name in files), "the same classes"),
        ("path,width\n" + "".join(f"{name},32\n" for name in files), "no column is known to hold labels"),
    ]:
        found = find_splits(Data(str(put(tmp_path, files | {"labels.csv": text}))))
        (tmp_path / "pipe.csv").exists() or os.mkfifo(tmp_path / "pipe.csv")  # which would never end
        assert (set(found), found["train"].class_names) == ({"train", "val"}, ("a", "b"))
        assert words in found.notes[0]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"data.csv": "file,kind\n" + ROWS}, "data.csv names the images in part_1, part_2, .*label_column: file, kind"),
        ({"a.csv": "image,label\n" + ROWS, "b.csv": "image,label\n" + ROWS}, "a.csv, b.csv"),
        ({"a.csv": "image,label\n0.png,x\n0.png,y\n"}, "part_1/0.png has two labels, x and y"),
        ({"a.csv": ROWS}, "the first line names the image 0.png"),
        ({"a.csv": "image,label\n1.png,x\n", "part_2/1.png": b""}, "1.png may be several"),
    ],
)
def test_tables_beside_images_that_leave_doubts_are_refused(tmp_path, files, words):
    with pytest.raises(ValueError, match=words):
        find_splits(Data(str(put(tmp_path, IMAGES | files))))

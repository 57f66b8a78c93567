"""CSV, TSV and JSONL as Sources: columns, separators, splits, several labels; every damage names its line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sources import put
from test_source import targets

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
@given(st.lists(st.tuples(field, st.sampled_from(["a", 'b"', "c,d", "é"])), min_size=1))
def test_jsonl_gives_back_every_path_and_label(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("table")
    (folder / "t.jsonl").write_text("".join(json.dumps({"image": p, "label": c}) + "\n" for p, c in rows))
    source = only(folder / "t.jsonl")
    assert [source.name(index) for index in range(len(rows))] == [str(folder / path) for path, _ in rows]
    assert [source.class_names[target] for target in targets(source)] == [c for _, c in rows]


def test_several_labels_in_texts_and_in_lists(tmp_path):
    source = only(put(tmp_path, {"t.csv": "image,label\na,sun|sea\nb,sea\nc,\nd,sea ; sand;sea\n"}) / "t.csv")
    assert (source.class_names, targets(source)) == (("sand", "sea", "sun"), [(2, 1), (1,), (), (1, 0)])
    rows = [json.dumps({"image": "a", "label": label}) for label in (["b|c", "a"], [], "a", None)]
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

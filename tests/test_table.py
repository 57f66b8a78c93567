"""CSV, TSV and JSONL as Sources: columns, separators, splits, several labels; every damage names its line."""

import json
import pickle
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.data.sources.source import Source, pixels
from vitrail.data.sources.table import splits


def png(value):
    file = BytesIO()
    Image.new("L", (3, 2), value).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def put(tmp_path):
    """Writes a file of text or bytes below tmp_path and returns its path."""

    def put(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


def only(path, *columns):
    """The one source of a place that is not divided."""
    (found,) = splits(path, *columns or (None, None)).items()
    assert found[0] == "all"
    assert isinstance(found[1], Source)
    return found[1]


def named(source):
    """(name, classes) of each record."""
    found = []
    for index in range(len(source)):
        target = source.target(index)
        numbers = target if isinstance(target, tuple) else (target,)
        found.append((source.name(index), *(source.class_names[number] for number in numbers)))
    return found


def test_a_record_is_a_file_its_class_and_its_name(put, tmp_path):
    for number, name in enumerate(("cats/a b.png", "dög.png")):
        put(name, png(number))
    put("elsewhere/c.png", png(2))
    table = put("t.csv", f"image,label\ncats/a b.png,cat\ndög.png,dog\n{tmp_path}/elsewhere/c.png,cat\n")
    source = only(table)
    assert (len(source), source.class_names, source.multi_label) == (3, ("cat", "dog"), False)
    assert [source.target(index) for index in range(3)] == [0, 1, 0]
    assert source[1] == (png(1), 1, str(tmp_path / "dög.png"))
    assert [pixels(*source[index][:1], 1, "").max() for index in range(3)] == [0, 1, 2]
    again = pickle.loads(pickle.dumps(source))
    assert [again[index] for index in range(3)] == [source[index] for index in range(3)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "image,label\na.png,x\nb.png,y\n"),
        ("t.csv", "\ufeffimage,label\r\na.png,x\r\n\r\nb.png,y"),  # as Excel writes it
        ("t.csv", "image;label\na.png;x\nb.png;y\n"),  # and where the comma is for decimals
        ("t.csv", '"image","n, m","label"\n"a.png","1, ""2""","x"\n"b.png","\n","y"\n'),
        ("t.tsv", "label\timage\nx\ta.png\ny\tb.png\n"),
        ("t.CSV", "File Name,n,Species\na.png,1,x\nb.png,2,y\n"),
        ("t.jsonl", '{"image": "a.png", "label": "x"}\n\n{"label": "y", "image": "b.png", "more": [{}]}\n'),
        ("t.jsonl", '\ufeff{"file_name": "a.png", "category": "x"}\n{"file_name": "b.png", "category": "y"}'),
    ],
)
def test_tables_are_read_however_they_are_written(put, tmp_path, name, content):
    assert named(only(put(name, content))) == [(str(tmp_path / "a.png"), "x"), (str(tmp_path / "b.png"), "y")]


field = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip).filter(bool)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(field, st.sampled_from(["a", 'b"', "c,d", "é"])), min_size=1))
def test_jsonl_gives_back_every_path_and_label(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("table")
    (folder / "t.jsonl").write_text("".join(json.dumps({"image": p, "label": c}) + "\n" for p, c in rows))
    assert named(only(folder / "t.jsonl")) == [(str(folder / path), c) for path, c in rows]


def test_the_named_columns_are_taken(put):
    table = put("t.csv", "a,b,image,label\nx.png,1,y.png,2\nz.png,0,y.png,3\n")
    assert [name.split("/")[-1] for name, _ in named(only(table, "a", "b"))] == ["x.png", "z.png"]
    assert only(table, "a", "b").class_names == ("0", "1")
    assert only(table, None, "b").name(0).endswith("y.png")


def test_several_labels_in_texts_and_in_lists(put):
    source = only(put("t.csv", "image,label\na,sun|sea\nb,sea\nc,\nd,sea ; sand;sea\n"))
    assert (source.class_names, source.multi_label) == (("sand", "sea", "sun"), True)
    assert [source.target(index) for index in range(4)] == [(2, 1), (1,), (), (1, 0)]
    rows = [json.dumps({"image": "a", "label": label}) for label in ([10, 9], [], 9, None)]
    source = only(put("t.jsonl", "\n".join(rows)))
    assert (source.class_names, [source.target(index) for index in range(4)]) == (("9", "10"), [(1, 0), (), (0,), ()])
    # In JSON there are lists for that.
    assert only(put("u.jsonl", '{"image": "a", "label": "sun|sea"}\n')).class_names == ("sun|sea",)


def test_a_column_divides_a_table(put):
    table = put("t.csv", "image,label,Split\na,x,train\nb,y,Validation\nc,x,TEST\nd,z,training\n")
    found = splits(table, None, None)
    assert list(found) == ["train", "val", "test"]
    assert [[name.split("/")[-1] for name, _ in named(source)] for source in found.values()] == [
        ["a", "d"],
        ["b"],
        ["c"],
    ]
    assert [source.class_names for source in found.values()] == [("x", "z"), ("y",), ("x",)]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["train.csv", "val.csv"], {"train": ["train.csv"], "val": ["val.csv"]}),
        (["train.csv", "TEST.csv", "sample_submission.csv"], {"train": ["train.csv"], "test": ["TEST.csv"]}),
        (["train-1.jsonl", "train-0.jsonl"], {"train": ["train-0.jsonl", "train-1.jsonl"]}),
        (["data/train.csv", "data/eval.csv", "x.jsonl"], {"train": ["data/train.csv"], "test": ["data/eval.csv"]}),
        (["photos.csv", ".hidden.csv"], {"all": ["photos.csv"]}),
        (["data/Training/a.csv", "train.csv"], {"train": ["train.csv"]}),
    ],
)
def test_the_names_of_files_divide_a_folder(put, tmp_path, files, expected):
    for file in files:
        row = json.dumps({"image": "x.png", "label": file}) if file.endswith("jsonl") else f"image,label\nx.png,{file}"
        put(file, row + "\n")
    found = splits(tmp_path, None, None)
    assert {split: [label for _, label in named(source)] for split, source in found.items()} == expected
    if "data/train.csv" in files:  # paths are relative to the table, not to the folder
        assert found["train"].name(0) == str(tmp_path / "data" / "x.png")


def test_images_are_looked_for_when_they_are_read(put, tmp_path):
    source = only(put("t.csv", "image,label\nmissing.png,x\n.,x\n"))
    with pytest.raises(
        ValueError, match=r"t.csv names what cannot be read: .*missing.png does not exist; check its name"
    ):
        source[0]
    with pytest.raises(ValueError, match=r"t.csv names what cannot be read: .* is a folder, not an image"):
        source[1]
    with pytest.raises(IndexError, match="there are images 0 to 1, but 2 was asked for"):
        source[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "t.csv: no column is known to hold the images; name one of these as image_column: none"),
        ("a.png,cat\n", "t.csv: no column is known to hold the images; .*: a.png, cat"),
        ("image,label\n", "t.csv has no images; check the path"),
        ("image,label\na,x\nb\n", "t.csv, line 3 has 1 fields, but the header has 2; mend the line"),
        ("image,label\na,x\n\nb,\n", "t.csv, line 4 has no label; add it, or take the row out"),
        ("image,label\n ,x\n", "t.csv, line 2: the image is ' ', which is no path"),
        ("image,label,split\na,x,train\nb,y,extra\n", "t.csv, line 3: its split is 'extra', which is none of"),
        ('image,label\na,x\n"b,y\n', r"t.csv is damaged after line 2 \(unexpected end of data\); mend the line"),
        ('image,label\na,x\n"b"c,y\n', "t.csv is damaged after line 2"),
        ("image,label\n" + "a" * 200_000 + ",x\n", r"t.csv is damaged after line 1 \(field larger than field limit"),
        ("image,label\na,x\nb,\xe9\n".encode("latin-1"), "t.csv is not UTF-8, somewhere after line 1; save it as"),
        ("image,label\na,x\n".encode("utf-16"), "t.csv is not UTF-8"),
    ],
)
def test_damaged_csv_names_its_line(put, content, message):
    with pytest.raises(ValueError, match=message):
        splits(put("t.csv", content), None, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "t.jsonl, line 2 is no JSON object; mend the line"),
        ('{"image": "b", "label": ', "t.jsonl, line 2 is no JSON object"),
        ("[" * 100_000, "t.jsonl, line 2 is no JSON object"),
        ('{"image": "b", "label": 1%s}' % ("0" * 5000), "t.jsonl, line 2 is no JSON object"),
        (b"\xff\xfe", "t.jsonl, line 2 is no JSON object"),
        ('{"image": "b"}', "t.jsonl, line 2 has no 'label', as the lines before have; add it"),
        ('{"image": 3, "label": 1}', "t.jsonl, line 2: the image is '3', which is no path"),
        ('{"image": "\\ud800", "label": 1}', "t.jsonl, line 2: 'utf-8' codec can't encode"),
        ('{"image": "b", "label": 0.5}', "t.jsonl, line 2: the label is 0.5; labels are names"),
        ('{"image": "b", "label": null}', "t.jsonl, line 2 has no label; add it"),
        ('{"image": "b", "label": "\\u0000"}', r"t.jsonl has a class of an unreadable name, '\\x00'; rename it"),
    ],
)
def test_damaged_jsonl_names_its_line(put, line, message):
    line = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(ValueError, match=message):
        splits(put("t.jsonl", b'{"image": "a", "label": 1}\n' + line), None, None)


def test_places_without_tables_are_refused(put, tmp_path):
    with pytest.raises(ValueError, match=r"none.csv does not exist; check the path"):
        splits(tmp_path / "none.csv", None, None)
    with pytest.raises(ValueError, match="null is no regular file; check the path"):
        splits(tmp_path.joinpath("/dev/null"), None, None)
    with pytest.raises(ValueError, match=r"has no tables \(.csv, .tsv, .jsonl, .parquet\); check the path"):
        splits(tmp_path, None, None)
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    with pytest.raises(ValueError, match=r"has no tables"):
        splits(tmp_path, None, None)
    put("train.csv", "image,label\na,x\n")
    put("train.jsonl", "{}")
    with pytest.raises(ValueError, match=r"has both train.csv and train.jsonl; name the one that is meant"):
        splits(tmp_path, None, None)

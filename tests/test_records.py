"""Images and labels side by side: their order, their classes, which column is which."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sources import put
from test_source import targets

from vitrail.data.sources.records import Labels, divide, find_column, label, tables


@dataclass
class Numbers:
    """Images that are their own number."""

    count: int

    def __len__(self):
        return self.count

    def read(self, row):
        return b"%d" % row

    def name(self, row):
        return f"image {row}"


def group(*values, splits=None, **how):
    labels = Labels(**how)
    for value, split in zip(values, splits or [None] * len(values), strict=True):
        labels.add(value, split)
    return Numbers(len(values)), labels


def whole(*values, **how):
    return divide(Path("x"), {"all": group(*values, **how)})["all"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["cat", "dog", "emu", " cat", "é", "e\u0301"]), min_size=1), st.data())
def test_a_record_has_its_own_label_in_its_split(values, data):
    words = [("train", "Training"), ("val", "valid"), ("test", " TEST ")]
    splits = data.draw(st.lists(st.integers(0, 2), min_size=len(values), max_size=len(values)))
    found = divide(Path("x"), {"all": group(*values, splits=[words[n][n % 2] for n in splits])})
    for number, (split, _) in enumerate(words):
        rows = [row for row, of in enumerate(splits) if of == number]
        assert (split in found) == bool(rows)
        if rows:
            source = found[split]
            assert [source[index].image for index in range(len(source))] == [b"%d" % row for row in rows]
            expected = [label(values[row]) for row in rows]
            assert [source.class_names[target] for target in targets(source)] == expected
            assert list(source.class_names) == sorted(set(expected))


def test_each_split_has_the_classes_that_occur_in_it_or_all_that_are_known():
    groups = {"train": group("a", "b"), "val": group("c", "b")}
    assert [source.class_names for source in divide(Path("x"), groups).values()] == [("a", "b"), ("b", "c")]
    source = whole("y", None, "y", classes=("z", "y", "x"))
    assert (source.class_names, targets(source), source.targets) == (("z", "y", "x"), [1, None, 1], "class")
    assert whole(10, 2, 0, "1").class_names == ("0", "1", "2", "10")
    assert whole("9" * 5000, "1").class_names == ("1", "9" * 5000)  # Python makes no number of so many digits
    assert (targets(whole(None, "")), whole(None).targets) == ([None, None], "none")


def test_one_list_of_labels_makes_all_of_a_place_lists():
    found = divide(Path("x"), {"train": group("a", ["b", "a", "b"]), "val": group("b", None)})
    assert [targets(source) for source in found.values()] == [[(0,), (1, 0)], [(0,), ()]]
    assert {source.targets for source in found.values()} == {"classes"}
    source = whole("a|b", "b;a;", "", "c d", separators="|;")
    assert (source.class_names, targets(source)) == (("a", "b", "c d"), [(0, 1), (1, 0), (), (2,)])
    assert whole("a|b", "b").class_names == ("a|b", "b")


@pytest.mark.parametrize(
    ("vectors", "classes", "expected"),
    [
        ([[0, 1, 0], [1, 0, 0], [0, 0, 1]], (), [1, 0, 2]), ([[0, 1], [1, 0]], ("no", "yes"), [1, 0]),
        ([[False, True, False], [0.0, 0.0, 1.0], None], (), [1, 2, None]), ([[1, 1, 0], [0, 0, 0]], (), [(0, 1), ()]),
        ([[0], [1], [0, 1]], (), [(0,), (1,), (0, 1)]), ([[0, 1], [1, 2]], (), [(0, 1), (1, 2)]),
    ],
)  # fmt: skip
def test_lists_of_0_and_1_say_for_each_class_whether_it_is_there(vectors, classes, expected):
    source = whole(*vectors, classes=classes)
    assert targets(source) == expected
    width = 3 if [0, 1] not in vectors or len(vectors[-1]) == 2 < max(vectors[-1]) + 1 else 2
    assert source.class_names == (classes or tuple(map(str, range(width))))


@pytest.mark.parametrize(
    ("vectors", "classes", "numbers"), [([[0, 1, 0], [1, 0]], (), "2, 3"), ([[0, 1]], ("a",), "2 numbers")]
)
def test_vectors_that_do_not_fit_are_refused(vectors, classes, numbers):
    with pytest.raises(ValueError, match=f"x: .*{numbers}"):
        whole(*vectors, classes=classes)


@pytest.mark.parametrize("value", [0.5, float("nan"), {"name": "cat"}, [None], [["a"]], b"cat"])
def test_what_is_not_a_label_is_refused(value):
    with pytest.raises(ValueError, match="the label is"):
        label(value)


@pytest.mark.parametrize(
    ("columns", "what", "asked", "typed", "found"),
    [
        ("id Image-Path x", "image", None, (), "Image-Path"), ("image file", "image", None, ["image"], "image"),
        ("image thumbnail", "image", None, ["image", "thumbnail"], "image"), ("a b", "label", "b", (), "b"),
        ("photo x", "image", None, ["photo"], "photo"), ("a b", "label", None, (), None),
        ("a b", "label", "c", (), ValueError("'c', but a, b")),
        ("class label", "label", None, (), ValueError("class, label.*label_column")),
        ("a b\x1b", "image", None, (), ValueError(r"image_column: a, 'b\\x1b'")),
    ],
)  # fmt: skip
def test_columns_are_found_by_name_and_type_or_asked_for(columns, what, asked, typed, found):
    if isinstance(found, ValueError):
        with pytest.raises(ValueError, match=str(found)):
            find_column(columns.split(), what, asked, typed)
    else:
        assert find_column(columns.split(), what, asked, typed) == found


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("train.csv TEST.csv sample_submission.csv", {"train": ["train.csv"], "test": ["TEST.csv"]}),
        ("train-1.jsonl train-0.jsonl", {"train": ["train-0.jsonl", "train-1.jsonl"]}),
        ("data/train.csv data/eval.csv x.csv", {"train": ["data/train.csv"], "test": ["data/eval.csv"]}),
        ("photos.csv .hidden.csv notes.txt", {"all": ["photos.csv"]}),
        ("data/Training/a.csv train.csv", {"train": ["train.csv"]}),
        ("default/Train/0.csv default/test/0.csv", {"train": ["default/Train/0.csv"], "test": ["default/test/0.csv"]}),
    ],
)
def test_the_names_of_files_divide_a_folder(tmp_path, files, expected):
    put(tmp_path, dict.fromkeys(files.split(), ""))
    found, left_out = tables(tmp_path, (".csv", ".jsonl"))
    assert [file.name for file in left_out] == [name for name in ("sample_submission.csv", "x.csv") if name in files]
    assert {split: [str(file.relative_to(tmp_path)) for file in some] for split, some in found.items()} == expected


def test_what_does_not_go_together_is_refused(tmp_path):
    for found, words in [
        (group("a", "b", splits=["train", None]), "place: image 1 is in none"),
        (group(), "place has no images"),
        (group("a\x1b"), r"place has a class .*'a\\x1b'"),
    ]:
        with pytest.raises(ValueError, match=words):
            divide(Path("place"), {"all": found})
    with pytest.raises(ValueError, match="'extra'"):
        group("a", splits=["extra"])
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    with pytest.raises(ValueError, match=f"{tmp_path.name} has no tables"):
        tables(tmp_path, (".csv",))
    with pytest.raises(ValueError, match=r"train.csv and train.jsonl"):
        tables(put(tmp_path, {"train.csv": "", "train.jsonl": ""}), (".csv", ".jsonl"))

"""Images and labels side by side: their order, their classes, what a split is called, which column is which."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.data.sources.records import (
    Column,
    Group,
    Paths,
    Texts,
    divide,
    find_column,
    label,
    mark,
    ordered,
    split_in,
)
from vitrail.data.sources.source import Source


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


def column(*labels, **how):
    made = Column(**how)
    for value in labels:
        made.add(value)
    return made


def group(*labels, marks=None, **how):
    marks = np.full(len(labels), -1, np.int8) if marks is None else np.array(marks, np.int8)
    return Group(Numbers(len(labels)), column(*labels, **how), marks)


def targets(source):
    return [source.target(index) for index in range(len(source))]


names = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=40, deadline=None)
@given(st.lists(names), st.lists(names))
def test_texts_are_a_list_of_strings(first, second):
    texts, others = Texts(), Texts()
    for text in first:
        texts.append(text)
    for text in second:
        others.append(text)
    texts.extend(others)
    assert [texts[index] for index in range(len(texts))] == first + second
    again = Texts(bytes(texts.content), texts.ends)
    assert [again[index] for index in range(len(again))] == first + second


def test_texts_hold_what_a_file_can_be_called_and_nothing_else():
    texts = Texts()
    texts.append("caf\udce9.jpg")  # Latin-1, as os.listdir gives it
    assert texts[0] == "caf\udce9.jpg"
    with pytest.raises(UnicodeEncodeError):
        texts.append("\ud800")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["cat", "dog", "emu", " cat", "é", "e\u0301"]), min_size=1), st.data())
def test_a_record_has_its_own_label_in_whatever_split_it_is(values, data):
    marks = data.draw(st.lists(st.integers(0, 2), min_size=len(values), max_size=len(values)))
    found = divide("x", {"all": group(*values, marks=marks)})
    for split, number in (("train", 0), ("val", 1), ("test", 2)):
        rows = [row for row, of in enumerate(marks) if of == number]
        assert (split in found) == bool(rows)
        if rows:
            source = found[split]
            assert isinstance(source, Source)
            assert [source[index][0] for index in range(len(source))] == [b"%d" % row for row in rows]
            expected = [str(label(values[row])) for row in rows]
            assert [source.class_names[target] for target in targets(source)] == expected  # type: ignore[index]
            assert list(source.class_names) == sorted(set(expected))


def test_without_marks_a_place_is_not_divided_and_records_keep_their_order():
    source = divide("x", {"all": group("b", "a", "b")})["all"]
    assert (len(source), source.class_names, source.multi_label) == (3, ("a", "b"), False)
    assert source[2] == (b"2", 1, "image 2")
    assert source.name(1) == "image 1"
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"there are images 0 to 2, but {index} was asked for"):
            source[index]


def test_classes_that_are_numbers_are_in_their_order():
    assert divide("x", {"all": group(10, 2, 0, "1")})["all"].class_names == ("0", "1", "2", "10")
    assert ordered(["10", "9", "-1"]) == ["-1", "9", "10"]
    assert ordered(["10", "9", "b"]) == ["10", "9", "b"]
    assert ordered(["9" * 5000, "1"]) == ["1", "9" * 5000]  # Python refuses to make a number of so many digits


def test_each_split_has_the_classes_that_occur_in_it_or_all_where_they_are_known():
    groups = {"train": group("a", "b"), "val": group("c", "b")}
    assert [source.class_names for source in divide("x", groups).values()] == [("a", "b"), ("b", "c")]
    known = Column(classes=("z", "y", "x"))
    known.extend(["y", None], np.array([0, 1, 0], np.int32))
    source = divide("x", {"all": Group(Numbers(3), known, np.full(3, -1, np.int8))})["all"]
    assert (source.class_names, targets(source)) == (("z", "y", "x"), [1, -1, 1])


def test_one_list_of_labels_makes_all_of_a_place_lists():
    found = divide("x", {"train": group("a", ["b", "a", "b"]), "val": group("b", None)})
    assert [targets(source) for source in found.values()] == [[(0,), (1, 0)], [(0,), ()]]
    assert all(source.multi_label for source in found.values())
    source = divide("x", {"all": group("a|b", "b;a;", "", "c d", separators="|;")})["all"]
    assert (source.class_names, targets(source)) == (("a", "b", "c d"), [(0, 1), (1, 0), (), (2,)])
    assert divide("x", {"all": group("a|b", "b")})["all"].class_names == ("a|b", "b")


def test_sources_survive_pickling():
    source = divide("x", {"all": group("a", "b", "a", marks=[0, 1, 0])})["train"]
    again = pickle.loads(pickle.dumps(source))
    assert [again[index] for index in range(2)] == [source[index] for index in range(2)]


@pytest.mark.parametrize(
    ("value", "kept"),
    [("cat ", "cat"), (3, "3"), (3.0, "3"), (True, "True"), ([1, "x", 1], ("1", "x")), ([], ()), (None, ""), ("", "")],
)
def test_labels_become_texts(value, kept):
    assert label(value) == kept


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf"), {"name": "cat"}, [None], [["a"]], b"cat"])
def test_what_is_no_label_is_refused(value):
    with pytest.raises(ValueError, match=r"the label is .*; labels are names, whole numbers, or lists of them"):
        label(value)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002", "train"), ("imagenet1k-Validation-07.tar", "val"), ("my_test_set", "test"),
        ("eval", "test"), ("training2", "train"), ("train_test", None), ("trainer", None), ("photos", None),
    ],
)  # fmt: skip
def test_the_split_in_a_file_name(name, split):
    assert split_in(name) == split


def test_the_split_in_a_row():
    assert [mark(word) for word in ("Training", "valid", " TEST ")] == [0, 1, 2]
    with pytest.raises(ValueError, match="its split is 'extra', which is none of train, val and test"):
        mark("extra")


@pytest.mark.parametrize(
    ("columns", "typed", "found"),
    [
        (["id", "Image Path", "x"], [], "Image Path"),
        (["image", "file"], ["image"], "image"),
        (["image", "thumbnail"], ["image", "thumbnail"], "image"),
        (["photo", "x"], ["photo"], "photo"),
    ],
)
def test_columns_are_found_by_name_and_type(columns, typed, found):
    assert find_column("t.csv", columns, "image", None, typed) == found


def test_columns_that_cannot_be_told_are_asked_for():
    assert find_column("t.csv", ["a", "b"], "label", "b") == "b"
    with pytest.raises(ValueError, match=r"t.csv has no column 'c'; it has a, b\."):
        find_column("t.csv", ["a", "b"], "label", "c")
    with pytest.raises(ValueError, match="labels could be in the columns class, label; name one as label_column"):
        find_column("t.csv", ["class", "label"], "label", None)
    with pytest.raises(ValueError, match=r"no column is known to hold the labels; .* as label_column: a, 'b\\x1b'\."):
        find_column("t.csv", ["a", "b\x1b"], "label", None)
    with pytest.raises(ValueError, match=r"as image_column: 0, 1, .*, 19, \.\.\.\."):
        find_column("t.csv", [str(number) for number in range(50)], "image", None)


def test_what_does_not_go_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match="place: image 1 is in none of train, val and test, though others are"):
        divide("place", {"all": group("a", "b", marks=[0, -1])})
    with pytest.raises(ValueError, match="place has no images; check the path"):
        divide("place", {"all": group()})
    with pytest.raises(ValueError, match=r"place has a class of an unreadable name, 'a\\x1b'; rename it"):
        divide("place", {"all": group("a\x1b")})
    blank = group("a", "")
    blank.column.blank = "t.csv, line 3"
    with pytest.raises(ValueError, match=r"t.csv, line 3 has no label; add it, or take the row out"):
        divide("place", {"all": blank})
    with pytest.raises(ValueError, match="place has 3 images, but 1 labels; it is damaged"):
        divide("place", {"all": Group(Numbers(3), column("a"), np.full(1, -1, np.int8))})
    paths = Paths(tmp_path, "t.csv")
    for path in ("", None, 3):
        with pytest.raises(ValueError, match="which is no path"):
            paths.append(path, ".")

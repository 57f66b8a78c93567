"""What a page says of an examination: the right words and numbers, for one class or a thousand, with any names."""

import math
import re

import numpy as np
import pytest
from pages import HOSTILE, Outline, Pictures, several, single

from vitrail.evaluate.results import SingleLabel, accuracy_interval
from vitrail.report.classification import details, headline, percent
from vitrail.report.html import document


def page(examination, channels=3):
    source = Pictures(examination.class_names)
    return document("t", [headline(examination), *details(examination, source, channels)])


def of(targets, predicted, names=("cat", "dog", "bird"), confidence=0.9):
    targets, predicted = np.array(targets), np.array(predicted)
    sure = np.full(len(targets), confidence)
    return SingleLabel(names, np.arange(len(targets)), 1 - sure, (), targets, predicted, sure, sure)


@pytest.mark.parametrize(
    ("share", "words"), [(0.86954, "87.0"), (1.0, "100.0"), (0.99999, "99.9"), (0.0, "0.0"), (0.0004, "0.0")]
)
def test_only_everything_is_a_hundred_percent(share, words):
    assert percent(share) == f"{words}\u202f%"
    assert percent(math.nan) == "–"


def test_the_headline_is_the_accuracy_and_its_interval():
    examination = single(problems=("a.jpg is damaged",))
    text = Outline(headline(examination)).text
    right = int(examination.right.sum())
    low, high = accuracy_interval(right, 200)
    assert text.startswith(f"{percent(right / 200)} of 200 held-back images are right.".replace("\u202f", " "))
    assert f"{percent(low)} to {percent(high)}".replace("\u202f", " ") in text
    assert "Left out, for they could not be read: 1." in text
    assert "five best" not in text
    assert "among the five best answers for 100.0" in Outline(headline(single(tuple("abcdef")))).text


def test_the_most_frequent_mistake_is_said_in_words():
    targets, predicted = [0, 0, 0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 0, 1, 1, 1, 2]
    text = Outline(headline(of(targets, predicted))).text
    assert "Most often, cat was taken for dog : 3 of 4 images, and 1 of 3 the other way round." in text
    text = Outline(headline(of([2, 0, 0], [2, 0, 2]))).text
    assert "Most often, cat was taken for bird : 1 of 2 images." in text
    assert "There is not one mistake." in Outline(headline(of([0, 1], [0, 1]))).text


def captions(html):
    """What stands below each picture of the first gallery."""
    gallery = html.partition('<div class="gallery"')[2].partition("</section>")[0].partition("<h3>")[0]
    return [Outline(f"<p>{text}</p>").text for text in re.findall("<figcaption>(.*?)</figcaption>", gallery, re.S)]


def cells(html):
    """The texts of the cells of every row of the first table."""
    table = html.partition("<tbody>")[2].partition("</tbody>")[0]
    return [
        [Outline(cell.partition(">")[2]).text for cell in row.split("<td")[1:]]
        for row in table.replace("</td>", "").replace("</tr>", "").split("<tr>")[1:]
    ]


def test_classes_stand_the_weakest_first_and_those_without_images_last():
    html = page(of([0, 0, 0, 1, 1, 1], [0, 0, 1, 2, 2, 1]))
    assert [row[:2] + row[-1:] for row in cells(html)] == [
        ["dog", "3", "bird (2)"], ["cat", "3", "dog (1)"], ["bird", "0", ""]
    ]  # fmt: skip
    assert cells(html)[0][2:5] == ["50.0 %", "33.3 %", "40.0 %"]
    assert cells(html)[2][2:5] == ["0.0 %", "–", "0.0 %"]


def test_the_worst_mistakes_are_shown_and_what_has_gone_is_not():
    examination = single(count=2000)
    names = examination.class_names
    expected = []
    for place in examination.worst(20).tolist():
        if place % 7 < 6:
            said, truth = names[examination.predicted[place]], names[examination.targets[place]]
            sure = percent(examination.confidence[place]).replace("\u202f", " ")
            expected.append(f"{said} , {sure} sure is {truth}")
    found = captions(page(examination))
    assert 0 < len(expected) < 20
    assert len(found) == len(expected)
    assert all(caption.startswith(start) for caption, start in zip(found, expected, strict=True))
    assert all(caption.endswith(".jpg") for caption in found)


def test_without_mistakes_there_are_only_right_ones():
    html = page(of([0, 1, 2], [0, 1, 2]))
    assert "There are none." in html
    assert "Right, but only just" in html
    assert "Right, but only just" not in page(of([0, 1], [1, 0]))


@pytest.mark.parametrize("classes", [1, 2, 41, 50, 51, 1000])
def test_any_number_of_classes_makes_a_page_of_moderate_size(classes):
    names = tuple(f"n{i:08d}, a name, as long as those of ImageNet" for i in range(classes))
    html = page(single(names, 3000))
    outline = Outline(html)
    assert outline.tags.count("script") == 0
    assert ("Rows are the truth" in outline.text) == (classes <= 50)
    assert ("taken for images of the class" in outline.text) == (classes > 50)
    assert (f"All {classes:,} classes" in outline.text) == (classes > 40)
    assert len(html) < 1_000_000


def test_hostile_names_are_text():
    for examination in (single(HOSTILE), several((*HOSTILE, "none"))):
        outline = Outline(page(examination))
        assert "<script>alert(1)</script>" in outline.text
        assert not {"onerror", "onload"} & {name for name, _ in outline.attributes}


def test_grey_pictures_are_shown_to_a_model_of_grey():
    assert page(single(), channels=1).count("<img") > 5


@pytest.mark.parametrize(
    ("confidence", "words"), [(0.9, "too sure of itself"), (0.2, "not sure enough"), (0.51, "as sure of itself as")]
)
def test_calibration_in_words(confidence, words):
    assert words in Outline(page(of([0, 1], [0, 2], confidence=confidence))).text


def test_several_labels_have_average_precisions_and_the_greatest_losses():
    examination = several()
    html = page(examination)
    text = Outline(html).text
    score = percent(examination.metrics["mAP"]).replace("\u202f", " ")
    assert f"{score} is the mean average precision over the classes, on 50 held-back images" in text
    precisions = dict(zip(examination.class_names, examination.average_precisions(), strict=True))
    assert [row[0] for row in cells(html)] == [*sorted(["cat", "dog"], key=precisions.get), "bird"]
    assert cells(html)[-1][1:3] == ["0", "–"]
    assert "confidence can be trusted" not in text
    shown = [place for place in examination.worst(20).tolist() if place % 7 < 6]
    assert [caption.rpartition("/")[2] for caption in captions(html)] == [f"{place}.jpg" for place in shown]
    assert all(" is " in caption for caption in captions(html))

"""report.html says what was run, what came of it and what to do next, whatever is missing from the run folder."""

import json
import re
import shlex
from dataclasses import asdict, replace

import numpy as np
import pytest
from pages import HOSTILE, Images, Outline, labelled, several, single

from vitrail import run as runs
from vitrail.data.sources.open import Data
from vitrail.evaluate.evaluator import Result
from vitrail.evaluate.results import accuracy_interval
from vitrail.models import resnet
from vitrail.models.cost import parameters
from vitrail.recipes.demo import demo
from vitrail.report.html import percent
from vitrail.report.run_page import write_report


def log(folder, lines=300, waiting=0.01, score="accuracy"):
    loss = np.random.default_rng(0).random(lines)
    record = {"lr": 1e-3, "accuracy": 0.5, "images_per_second": 640.0, "data_wait": waiting, "gradient_norm": 1.0}
    records = [{"step": 10 * n + 10, "loss": 0.2 / (n + 1) + loss[n] / 10, **record} for n in range(lines)]
    records += [{"step": step, "evaluation": {score: 0.7, "loss": 0.9}} for step in (1000, 2000, 3000)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))


@pytest.fixture
def page(tmp_path):
    """Makes a run's folder where there is none, and its page; returns the Outline."""

    def make(result=None, notes=(), run=None, results=None, metrics=None, name="run", **settings):
        folder, run, result = tmp_path / name, run or demo(), result or single()
        if not folder.exists():
            runs.write(run, folder)
            log(folder, **settings)
        results = {"classification": result} if results is None else results
        source, metrics = Images(result.class_names), metrics or result.metrics
        write_report(folder, run, source, results, metrics, notes)
        found = Outline((folder / "report.html").read_text(encoding="utf-8"))
        assert found.tags.count("script") == 2  # the data, and ours (test_report_command.py)
        return found

    return make


def test_a_report_has_everything_in_order(page):
    found, place = page(notes=["training from scratch on 11,000 images"]), 0
    for part in (
        "run", "demo on fashion, seed 0", "of 200 validation images", "Most often,",
        "ViT, 28 × 28 images, 7 × 7 patches, width 128, 4 blocks", f"{parameters(demo().model):,} parameters",
        "from scratch", "3,000 steps of 128 images (10 epochs)", "10 min 0 s", "640 images/s, 1.0 %",
        f"validation accuracy {single().metrics['accuracy']:.4g}, loss", "torch ", "numpy ",
        "Training from scratch on 11,000 images", "Curves over the steps", "Loss", "validation 0.9", "Accuracy",
        "validation 70 %", "Learning rate", "Classes, weakest first", "Which classes are confused",
        "The worst mistakes", "Right, but only just", "confidence can be trusted", "Every setting of this run",
        "optim.schedule.warmup 5%", "What to type next", "vitrail predict", "vitrail evaluate", "vitrail convert",
    ):  # fmt: skip
        place = found.text.index(part, place)
    assert "What the evaluators found" not in found.text
    assert found.html.count('class="notice"') == 1


def test_every_setting_of_the_run_is_in_its_table(page):
    found, waiting, paths = page(), [("", asdict(demo()))], []
    for prefix, settings in waiting:
        waiting += [(f"{prefix}{name}.", value) for name, value in settings.items() if isinstance(value, dict)]
        paths += [prefix + name for name, value in settings.items() if not isinstance(value, dict)]
    assert [path for path in paths if f"<td>{path}</td>" not in found.html] == []
    assert "model.patch_size [7, 7]" in found.text


def test_a_long_run_makes_no_longer_page(page):
    short, long = (page(name=str(lines), lines=lines).html for lines in (600, 20_000))
    assert short.count('class="chart"') == 8  # six curves, two of the calibration
    assert len(long) < 1.3 * len(short) < 500_000


def test_remarks_on_waiting_and_on_images_that_cannot_be_read(page):
    skipped = [f"skipped: {i}.jpg is damaged" for i in range(5000)]
    html = page(notes=["begun well", *skipped, "left out: v.jpg is empty"], waiting=0.3).html
    for words in ("Training waited for images for 30.0", "could not be read and were left out: 5,001."):
        assert words in html
    assert (html.count('class="notice"'), html.count(".jpg is damaged")) == (3, 1000)
    assert len(html) < 500_000


def test_without_metrics_there_is_still_a_report(tmp_path, page):
    (tmp_path / "run").mkdir()
    assert "there are no curves" in page().text


@pytest.mark.parametrize(
    ("name", "changes", "command"),
    [
        ("<b>run</b>", {}, "vitrail demo --data fashion --out"),
        ("it's $HOME; ls", {"recipe": "small", "data": Data("my photos")}, "vitrail train small --data 'my photos' --"),
        ("猫", {"recipe": "finetune", "start": "b16.npz"}, "vitrail finetune fashion --weights b16.npz --out"),
    ],
)
def test_commands_can_be_typed_whatever_the_folder_is_called(tmp_path, page, name, changes, command):
    text = page(name=name, run=replace(demo(), **changes)).text
    assert command in text
    predict = text[text.index("vitrail predict") :].partition(" IMAGE")[0]
    assert shlex.split(predict) == ["vitrail", "predict", str(tmp_path / name)]


@pytest.mark.parametrize("result", [single(HOSTILE, problems=HOSTILE), several((*HOSTILE, "none"))])
def test_hostile_words_anywhere_are_text(page, result):
    run = replace(demo(), recipe=HOSTILE[0], data=Data(HOSTILE[1]), start=HOSTILE[2])
    results = {"classification": result, **dict.fromkeys(HOSTILE, Result())}
    found = page(result, [*HOSTILE, "skipped: " + HOSTILE[0]], run, results, dict.fromkeys(HOSTILE, 0.5))
    assert found.text.count("<script>alert(1)</script>") > 5
    assert "photo\ufffdgnp.exe" in found.text


def test_times_are_in_two_units(tmp_path, page):
    (tmp_path / "run").mkdir()
    for seconds, words in {59.4: "59 s", 60: "1 min 0 s", 7512.3: "2 h 5 min", 4e6: "1,111 h 6 min"}.items():
        record = {"step": 1, "images_per_second": 128 / seconds, "data_wait": 0}  # one step of 128 images
        (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(record))
        assert f"time {words}, without evaluations" in page().text


def test_a_resnet_and_what_other_evaluators_found(page):
    run = replace(demo(), model=resnet.Config(blocks=(1, 1, 1, 1), channels=1, classes=10))
    metrics = {"mae": 0.123456, "samples": 40.0}
    found = page(run=run, results={"boxes": Result()}, metrics=metrics).text
    assert f"BiT ResNet, blocks 1-1-1-1, 1 times as wide, {parameters(run.model):,} parameters" in found
    assert "validation mae 0.1235 machine" in found
    assert "What the evaluators found metric value mae 0.1235 boxes Result Curves" in found


def spaced(fraction):
    return percent(fraction).replace("\u202f", " ")


def parts(found, tag, start, end):
    """The texts of each of such elements between two places of a page."""
    html = found.html.partition(start)[2].partition(end)[0]
    return [Outline(f"<p>{inside}</p>").text for inside in re.findall(f"<{tag}[^>]*>(.*?)</{tag}>", html, re.S)]


def test_the_headline_is_the_accuracy_its_interval_and_the_most_frequent_mistake(page):
    result = single(problems=("a.jpg is damaged",))
    correct, text = int(result.correct.sum()), page(result).text
    low, high = accuracy_interval(correct, 200)
    for words in (f"{spaced(correct / 200)} of 200", f"{spaced(low)} to {spaced(high)}", "could not be read: 1."):
        assert words in text
    assert "five" not in text
    assert "five most probable for 100.0 %" in page(single(tuple("abcdef"))).text
    text = page(labelled([0, 0, 0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 0, 1, 1, 1, 2])).text
    assert "cat was taken for dog : 3 of 4 images, and 1 of 3 the other way round." in text
    assert "cat was taken for bird : 1 of 2 images." in page(labelled([2, 0, 0], [2, 0, 2])).text


def test_classes_stand_the_weakest_first_and_those_without_images_last(page):
    found = page(labelled([0, 0, 0, 1, 1, 1], [0, 0, 1, 2, 2, 1]))
    assert parts(found, "td", "<tbody>", "</tbody>") == [
        "dog", "3", "50.0 %", "33.3 %", "40.0 %", "", "bird (2)", "cat", "3", "100.0 %", "66.7 %", "80.0 %", "",
        "dog (1)", "bird", "0", "0.0 %", "–", "0.0 %", "", "",
    ]  # fmt: skip
    assert re.findall(r'="width: (\d+)%', found.html) == ["40", "80", "0"]


def test_the_worst_mistakes_are_shown_and_what_has_gone_is_not(page):
    result = single(count=2000)
    names, places = np.array(result.class_names), [place for place in result.worst(20) if place % 7 < 6]
    found = parts(page(result), "figcaption", 'class="gallery"', "<h3>")
    assert 0 < len(places) < 20
    for place, caption in zip(places, found, strict=True):
        predicted, truth = names[result.predicted[place]], names[result.targets[place]]
        assert caption.startswith(f"{predicted} , {spaced(result.confidence[place])} sure is {truth} ")
        assert caption.endswith(f"/{place}.jpg")


def test_without_mistakes_there_are_only_right_ones(page):
    text = page(labelled([0, 1, 2], [0, 1, 2])).text
    for words in ("There is not one mistake.", "There are none.", "just cat , 90.0 % sure <script>"):
        assert words in text  # the name of a file follows, and no truth
    assert "Right, but only just" not in page(labelled([0, 1], [1, 0])).text


@pytest.mark.parametrize("classes", [1, 2, 41, 50, 51, 1000])
def test_any_number_of_classes_makes_a_page_of_moderate_size(page, classes):
    found = page(single(tuple(f"n{i:08d}, a name, as long as ImageNet's" for i in range(classes)), 3000))
    assert ("Rows are the true classes" in found.text) == (classes <= 50)
    assert ("taken for images of the class" in found.text) == (classes > 50)
    assert (f"All {classes:,} classes" in found.text) == (classes > 40)
    assert len(found.html) < 1_000_000


def test_calibration_in_words(page):
    for sure, words in ((0.9, "too sure of itself"), (0.2, "not sure enough"), (0.51, "as sure of itself as")):
        assert words in page(labelled([0, 1], [0, 2], confidence=sure)).text


def test_several_labels_have_average_precisions_and_the_greatest_losses(page):
    result = several()
    found, metrics, precisions = page(result, score="mAP"), result.metrics, result.average_precisions()
    assert f"{spaced(metrics['mAP'])} is the mean average precision over the classes, on 50" in found.text
    assert f"{metrics['f1']:.3f}" in found.text
    assert "Mean average precision validation 70 %" in found.text
    classes = parts(found, "td", "<tbody>", "</tbody>")
    assert classes[::7] == [
        *sorted(["cat", "dog"], key=dict(zip(result.class_names, precisions, strict=True)).get),
        "bird",
    ]
    assert classes[15:17] == ["0", "–"]
    places = [place for place in result.worst(20) if place % 7 < 6]
    captions = parts(found, "figcaption", 'class="gallery"', "</section>")
    assert [caption.rpartition("/")[2] for caption in captions] == [f"{place}.jpg" for place in places]
    assert all(" is " in caption for caption in captions)

"""report.html says what was run, what came of it and what to do next, whatever is missing from the run folder."""

import json
import shlex
from dataclasses import asdict, replace

import numpy as np
import pytest
from pages import HOSTILE, Outline, Pictures, several, single

from vitrail import run as runs
from vitrail.data.sources.open import Data
from vitrail.models.cost import parameters
from vitrail.recipes.demo import demo
from vitrail.report.run_page import write_report


def log(folder, lines=300, waiting=0.01, score="accuracy"):
    generator = np.random.default_rng(0)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(10, 10 * lines + 1, 10):
            record = {"step": step, "loss": 2 / step + generator.random() / 10, "lr": 1e-3, "accuracy": 0.5}
            record |= {"images_per_second": 640.0, "data_wait": waiting, "gradient_norm": 1.0}
            file.write(json.dumps(record) + "\n")
        for step in (1000, 2000, 3000):
            file.write(json.dumps({"step": step, "evaluation": {score: 0.7, "loss": 0.9}}) + "\n")


def write(folder, examination=None, notes=(), run=None, **settings):
    run = run or demo()
    if not folder.exists():
        runs.write(run, folder)
        log(folder, **settings)
    examination = examination or single()
    source = Pictures(examination.class_names)
    path = write_report(folder, run, source, examination, examination.metrics, notes)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def test_a_report_says_everything_in_order(tmp_path):
    html = write(tmp_path / "pets", notes=["training from scratch on 11,000 images"])
    text = Outline(html).text
    parts = [
        str(tmp_path / "pets"), "demo on fashion, seed 0", "of 200 held-back images are right", "Most often,",
        "ViT, 28 × 28 images, 7 × 7 patches, width 128, 4 blocks", f"{parameters(demo().model):,} parameters",
        "from scratch", "3,000 steps of 128 images (10 epochs)", "10 min 0 s", "640 images/s, 1.0 %", "torch ",
        "numpy ", "Training from scratch on 11,000 images", "Curves over the steps", "Loss", "Learning rate",
        "Classes, the weakest first", "What is taken for what", "The worst mistakes", "Right, but only just",
        "confidence can be trusted", "Every setting of this run", "What to type next", "vitrail predict",
        "vitrail evaluate", "vitrail convert",
    ]  # fmt: skip
    places = [text.find(part) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert places == sorted(places)


def test_every_setting_of_the_run_is_in_its_table(tmp_path):
    text = Outline(write(tmp_path / "run")).text

    def names(settings, prefix=""):
        for name, value in settings.items():
            yield from names(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]

    found = list(names(asdict(demo())))
    assert len(found) > 40
    assert [name for name in found if f" {name} " not in text] == []
    assert "optim.schedule.warmup 5%" in text
    assert "model.patch_size [7, 7]" in text


def test_the_curves_are_there_and_end_where_the_run_did(tmp_path):
    html = write(tmp_path / "run")
    assert html.count('class="chart"') == 8  # six curves, two of the calibration
    assert "held back 0.9" in html
    assert "held back 70\u202f%" in html


def test_a_long_run_makes_no_longer_page(tmp_path):
    short, long = (len(write(tmp_path / str(lines), lines=lines)) for lines in (600, 20_000))
    assert long < 1.3 * short
    assert long < 500_000


@pytest.mark.parametrize(("waiting", "said"), [(0.04, False), (0.3, True)])
def test_waiting_for_images_is_remarked_upon(tmp_path, waiting, said):
    assert ("Training waited for images for 30.0" in write(tmp_path / "run", waiting=waiting)) == said


def test_images_that_cannot_be_read_are_one_remark_and_a_list(tmp_path):
    skipped = [f"skipped: {i}.jpg is damaged" for i in range(5000)]
    html = write(tmp_path / "run", notes=["begun well", *skipped, "left out: v.jpg is empty"])
    assert html.count('class="notice"') == 2
    assert "could not be read and were left out: 5,001." in html
    assert "Which, and why, of the first 1,000" in html
    assert "skipped: 7.jpg is damaged" in html
    assert len(html) < 500_000


def test_without_metrics_or_run_json_there_is_still_a_report(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    assert "there are no curves" in write(folder)
    for content in ("", "[]", "{", '{"machine": {}, "versions": {}}', '{"machine": 5, "versions": null}', "\0"):
        (folder / "run.json").write_text(content)
        assert "held-back images are right" in write(folder)


@pytest.mark.parametrize("name", ["<b>run</b>", "it's $HOME; ls", "photos 猫"])
def test_the_commands_can_be_typed_whatever_the_folder_is_called(tmp_path, name):
    text = Outline(write(tmp_path / name)).text
    command = text[text.index("vitrail predict") :].partition(" IMAGE")[0]
    assert shlex.split(command) == ["vitrail", "predict", str(tmp_path / name)]


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({}, "vitrail demo --data fashion --out"),
        ({"recipe": "small", "data": Data("my photos")}, "vitrail train small --data 'my photos' --out"),
        ({"recipe": "finetune", "start": "b16.npz"}, "vitrail finetune fashion --weights b16.npz --out"),
    ],
)
def test_the_same_run_for_longer_can_be_typed(tmp_path, changes, command):
    assert command in Outline(write(tmp_path / "run", run=replace(demo(), **changes))).text


def test_hostile_words_anywhere_are_text(tmp_path):
    run = replace(demo(), recipe=HOSTILE[0], data=Data(HOSTILE[1]), start=HOSTILE[6])
    html = write(tmp_path / "run", single(HOSTILE, problems=HOSTILE), [*HOSTILE, "skipped: " + HOSTILE[0]], run)
    outline = Outline(html)
    assert "script" not in outline.tags
    assert not {"onerror", "onload"} & {name for name, _ in outline.attributes}
    assert outline.text.count("<script>alert(1)</script>") > 3


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (161, "2 min 41 s"), (7512.3, "2 h 5 min"), (4e6, "1,111 h 7 min")],
)
def test_times_are_said_in_two_units(tmp_path, seconds, words):
    (tmp_path / "run").mkdir()
    # One step of 128 images that took so long.
    record = {"step": 1, "images_per_second": 128 / max(seconds, 1e-6), "data_wait": 0}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(record))
    assert f"{words}, without evaluations" in Outline(write(tmp_path / "run")).text


def test_several_labels_have_a_report_too(tmp_path):
    text = Outline(write(tmp_path / "run", several(), score="mAP")).text
    assert "mean average precision over the classes" in text
    assert "Mean average precision held back 70 %" in text


def test_a_thousand_classes_and_a_resnet(tmp_path):
    names = tuple(f"class {i}" for i in range(1000))
    html = write(tmp_path / "run", single(names, 5000))
    assert len(html) < 2_000_000
    source, run = Pictures(names), demo()
    write_report(tmp_path / "run", run, source, single(names), {"loss": 1.0}, parameters=123_456)
    assert "123,456 parameters" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

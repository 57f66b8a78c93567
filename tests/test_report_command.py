"""`vitrail report`: the page of a run with where it looks, runs beside each other, and the script of a page."""

import base64
import hashlib
import io
import json
import re
import shutil

import numpy as np
import pytest
from command_line import TINY, photos, printed, refused
from pages import browser
from PIL import Image

from vitrail.evaluate.results import difference
from vitrail.report.html import heated

WORDS = ["--data", "photos", *TINY, "--duration", "2 steps", "--image-size", "24"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    photos(tmp_path / "photos", ("ash", "elm", "fir"), count=20)
    return tmp_path


def trained(capsys, out, *more):
    return printed(capsys, "train", "small", *WORDS, "--out", out, *more)[0]


def test_a_run_has_a_page_with_where_it_looks(capsys, here):
    metrics = trained(capsys, "run")["metrics"]
    found, _ = printed(capsys, "report", "run", "--out", "page.html")
    assert found["runs"]["run"] == pytest.approx(metrics)
    html = (here / "page.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    for part in ("where the model looks", "Mistakes, class by class", "Every setting of this run"):
        assert part.split()[0] in text
    assert "gradient-weighted attention" in text
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])
    assert data["metrics"]["loss"] == pytest.approx(metrics["loss"])
    assert [row["label"] for row in data["per_class"]] == ["ash", "elm", "fir"]


def test_the_only_script_is_the_one_that_the_policy_names(capsys, here):
    trained(capsys, "run")
    html = (here / "run" / "report.html").read_text()
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html
    assert html.count("<script") == 2
    assert "</script" not in json.dumps(json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])).lower()


def test_runs_are_compared_on_the_same_images(capsys, here):
    first, second = (
        trained(capsys, "one")["metrics"],
        trained(capsys, "two", "--seed", "0", "--optim.lr", "3e-3")["metrics"],
    )
    found, _ = printed(capsys, "report", "one", "two", "--out", "both.html")
    assert found["runs"] == {"one": pytest.approx(first), "two": pytest.approx(second)}
    html = (here / "both.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])
    [pair] = data["differences"]
    assert pair["difference"] == pytest.approx(second["accuracy"] - first["accuracy"])
    assert pair["low"] < pair["difference"] < pair["high"]
    assert ["optim.lr", "0.001", "0.003"] in data["settings"] or "optim.lr" in [row[0] for row in data["settings"]]
    shutil.copytree("photos", "others")
    trained(capsys, "three", "--data.val-fraction", "0.3")
    _, said = printed(capsys, "report", "one", "three", "--out", "other.html")
    assert "three has other validation images than one" in said
    assert "no interval of its own" in (here / "other.html").read_text()
    printed(capsys, "report", "one", "three", "two", "--out", "other.html")  # one pair is left
    data = json.loads(re.search(r'id="data">(.*?)</script>', (here / "other.html").read_text(), re.S)[1])
    assert [(pair["one"], pair["other"]) for pair in data["differences"]] == [("one", "two")]


def test_wrong_input_is_one_sentence(capsys, here):
    trained(capsys, "run")
    assert "photos is not a run folder" in refused(capsys, "report", "photos", "--out", "x.html")
    assert "a file .html in a folder that exists" in refused(capsys, "report", "run", "--out", "photos/ash/0.png")
    assert "a file .html in a folder that exists" in refused(capsys, "report", "run", "--out", "nowhere/x.html")
    assert "1 to 4 runs, not 5" in refused(capsys, "report", *["run"] * 5, "--out", "x.html")
    shutil.rmtree("run/model")
    assert "has no model yet" in refused(capsys, "report", "run", "--out", "x.html")


@pytest.mark.parametrize(("gained", "lost"), [(30, 10), (10, 30), (0, 0), (5, 0)])
def test_a_paired_difference_covers_what_it_estimates(gained, lost):
    one, other = np.zeros(400, bool), np.zeros(400, bool)
    one[:200] = other[:200] = True
    other[200 : 200 + gained] = True
    other[:lost] = False
    found, low, high = difference(one, other)
    assert found == (gained - lost) / 400
    assert low < found < high
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(400):  # of pairs drawn with these probabilities, 95 % or so cover
        kinds = draw.multinomial(400, [gained / 400, lost / 400, 1 - (gained + lost) / 400])
        a = np.repeat([False, True, True], kinds)
        b = np.repeat([True, False, True], kinds)
        _, bottom, top = difference(a, b)
        hits += bottom <= (gained - lost) / 400 <= top
    assert hits / 400 > 0.93


def test_heat_lies_where_the_map_does():
    photo = np.full((40, 80, 3), 100, np.uint8)
    scores = np.zeros((2, 4))
    scores[1, 3] = 1.0
    shown = heated(photo, scores, (0.0, 0.0, 80.0, 40.0))
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.src.partition(",")[2]))).convert("RGB")).astype(
        int
    )
    red = pixels[..., 0] - pixels[..., 2]
    rows, columns = red.shape
    assert red[3 * rows // 4, 7 * columns // 8] > 100
    assert abs(red[: rows // 2 - 2]).max() < 30
    beyond = heated(photo, np.ones((2, 2)), (20.0, 0.0, 60.0, 40.0))
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(beyond.src.partition(",")[2]))).convert("RGB")).astype(
        int
    )
    red = pixels[..., 0] - pixels[..., 2]
    assert red[rows // 2, columns // 2] > 100
    assert abs(red[:, : columns // 5]).max() < 30


def test_tables_are_sorted_and_images_filtered_in_a_browser(capsys, here):
    playwright = pytest.importorskip("playwright.sync_api")
    if not browser():
        pytest.skip("no Chromium here")
    photos(here / "photos", ("oak", "yew"), count=30)
    trained(capsys, "run")
    printed(capsys, "report", "run", "--out", "page.html")
    with playwright.sync_playwright() as play:
        window = play.chromium.launch(executable_path=browser(), args=["--no-sandbox"]).new_page()
        problems = []
        window.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        window.on("pageerror", lambda error: problems.append(str(error)))
        window.goto((here / "page.html").as_uri())
        button = window.locator("th button", has_text="F1").first
        column = "table:has(th button:text-is('F1')) tbody tr td:nth-child(5)"
        for order in ("descending", "ascending"):
            button.click()
            said = [
                float(text.replace("\u202f%", "")) for text in window.locator(column).all_inner_texts() if "%" in text
            ]
            assert said == sorted(said, reverse=order == "descending")
            assert window.locator(f"th[aria-sort={order}]").count() == 1
        fields = window.locator("input[type=search]")
        if fields.count():
            gallery = window.locator(".gallery").first
            every = gallery.locator("figure:visible").count()
            fields.first.fill("no such class")
            assert gallery.locator("figure:visible").count() == 0
            fields.first.fill("")
            assert gallery.locator("figure:visible").count() == every
        assert problems == []

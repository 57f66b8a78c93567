"""The page of a study: every part where there is something to show, sentences that fit, and all data inside."""

import json
import re
from dataclasses import asdict, replace
from html import unescape
from itertools import product

import pytest
from pages import Outline
from test_study_fit import noisy

from vitrail.report.study_page import write
from vitrail.study.findings import Row, findings
from vitrail.study.grid import Cell

PLAN = {"preset": "data-size", "data": "<b>photos", "seeds": 3, "examples": 40_000, "rates": [1e-3], "diverged": []}


def page(path, rows, **plan):
    plan = {**PLAN, **plan}
    document = {"plan": plan, "findings": findings(rows, plan["preset"]), "runs": [asdict(row) for row in rows]}
    write(document, path / "study.html")
    outline = Outline((path / "study.html").read_text())
    inside = re.search(r"<pre>(.*?)</pre>", outline.html, re.S)[1]
    assert json.loads(unescape(inside)) == json.loads(json.dumps(document))
    return outline


def costs(seeds, sizes=5):
    """Rows of `compute`, with an error that falls by a law of two axes, and seeds that differ by a thousandth."""
    for family, size, times, seed in product(("vit", "resnet"), range(sizes), (1, 2, 4, 8), range(seeds)):
        count, seen = 50_000 * 3**size, 20_000 * times
        error = (0.1 + 3 * count**-0.25 + 30 * seen**-0.5) * (1 + seed / 1000) * (1.1 if family == "vit" else 1)
        metrics = {"accuracy": 1 - error, "samples": 10_000.0}
        cell = Cell(family, size, 11_000, 40 * times, seed, 1e-3)
        yield Row(cell, 6.0 * count * seen, count, seen, float(size + times), metrics)


def test_a_page_by_images(tmp_path):
    found = page(tmp_path, noisy(3, 0.03))
    for words in (
        "the ResNet leads by", "It loses ground to the ViT in 100.0 % of 1,000 resamples", "as in Figure 3",
        "as in Figure 4", "fewshot_10 and the final accuracy: correlation 1.00", "E + A n^-a for n images",
        "exponents are hardly worth printing", "was predicted", "All runs", "and was not tuned",
    ):  # fmt: skip
        assert words in found.text.replace("\u202f", " "), words
    assert "as in Figure 5" not in found.text  # all costs are the same
    assert found.html.count('class="span"') == 2 * 5
    assert found.html.count("<circle") == 2 * 2 * 5


def test_a_page_by_cost(tmp_path):
    found = page(tmp_path, list(costs(2)), preset="compute", rates=[1e-3, 2e-3], diverged=["vit-9"])
    text = found.text.replace("\u202f", " ")
    assert "as in Figure 5" in text
    assert not re.search("as in Figure [34]", text)
    assert re.search(r"ResNet: E = 10\.0 % \(10\.0 % to 10\.0 %\), a = 0\.250 .*b = 0\.500", text)
    assert text.count("missed by +0.0 %") + text.count("missed by -0.0 %") == 2
    assert "The longest runs see each image 14.5 times" in text
    assert "the loss became NaN: vit-9" in text
    assert "Rates were chosen" in text


@pytest.mark.parametrize("preset", ["data-size", "compute"])
def test_one_family_of_one_seed_and_few_runs_still_has_a_page(tmp_path, preset):
    rows = [row for row in costs(1, sizes=2) if row.cell.family == "vit"]
    rows = rows if preset == "compute" else [replace(row, cell=replace(row.cell, steps=40)) for row in rows[::4]]
    found = page(tmp_path, rows, preset=preset, seeds=1)
    assert "It takes a ResNet, another family" in found.text
    words = found.text.partition("Everything on this page")[0]
    assert words.count("too few runs for a fit") == 2  # of the fit and of the prediction
    assert not re.search(r"a = \d", words)
    assert ", 1 seed " in words

"""The page of a study: the paper's Figures 3, 4 and 5 of our own runs (templates/study.html).

    write(document, Path("studies/cifar10/study.html"))

document: what study.json holds: {"plan": {...}, "findings": {...} by vitrail/study/findings.py, "runs": [...]}.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitrail.data.sources.source import many
from vitrail.report.charts import Chart, Line, lines
from vitrail.report.html import percent, render

NAMES = {"vit": "ViT", "hybrid": "hybrid", "resnet": "ResNet"}
COLOURS: dict[str, Literal["a", "b", "c"]] = {"vit": "a", "hybrid": "c", "resnet": "b"}
NOISY = 0.01  # of an error, over seeds: above it exponents are not worth much
EPOCHS = 4  # up to which images that are seen again are nearly as good as new ones (arXiv 2305.16264)
Point = Mapping[str, Any]


def write(document: Mapping[str, Any], path: Path) -> None:
    """Writes the page."""
    plan, found = document["plan"], document["findings"]
    points, shots = found["points"], dict.fromkeys(name for point in found["points"] for name in point["fewshot"])
    repeated = max(point["examples"] / point["images"] for point in points)
    page = render(
        "study.html",
        title="ViT, hybrid and ResNet compared",
        subtitle=f"preset {plan['preset']} on {plan['data']}, {many(plan['seeds'], 'seed')}",
        plan=plan,
        found=found,
        names=NAMES,
        images=_chart("Accuracy by training images", points, "images"),
        shots=[_chart(f"{name} by training images", points, "images", name) for name in shots],
        costs=[
            _chart("Accuracy by TFLOP of training", points, "flops", unit=1e12),
            _chart("Accuracy by seconds of training", points, "seconds"),
        ]
        if plan["preset"] == "compute"
        else [],
        rows=[_row(point) for point in points],
        noisy=NOISY,
        repeated=repeated,
        epochs=EPOCHS,
        text=json.dumps(document),
    )
    path.write_text(page, encoding="utf-8")


def _chart(title: str, points: Sequence[Point], axis: str, metric: str = "", unit: float = 1.0) -> Chart | None:
    """The families' best by a quantity, bold, with intervals, before the single sizes, faint. None along an axis of
    one value."""
    drawn = list[Line]()
    for family, group in groupby(points, lambda point: point["family"]):
        own = [point for point in group if not metric or metric in point["fewshot"]]
        sizes = groupby(own, lambda point: point["size"])
        faint = [Line("", *_xy(list(some), axis, metric, unit), COLOURS[family], True) for _, some in sizes]
        best = _frontier(own, axis, metric)
        spans = [point["interval"] or [point["accuracy"]] * 2 for point in best]
        ends = None if metric or not best else np.array(spans)
        drawn += faint if len(faint) > 1 else []
        drawn.append(Line(NAMES[family], *_xy(best, axis, metric, unit), COLOURS[family], dots=True, spans=ends))
    if len({value for line in drawn for value in line.x}) < 2:
        return None
    return lines(title, sorted(drawn, key=lambda line: not line.faint), percent=True, log=True)


def _xy(points: Sequence[Point], axis: str, metric: str, unit: float) -> tuple[np.ndarray, np.ndarray]:
    some = sorted(points, key=lambda point: point[axis])
    y = [point["fewshot"][metric] if metric else point["accuracy"] for point in some]
    return np.array([point[axis] for point in some], np.float64) / unit, np.array(y, np.float64)


def _frontier(points: Sequence[Point], axis: str, metric: str) -> list[Point]:
    """Along a cost, those that are better than all that cost no more; along images all of them."""
    best, found = -np.inf, list[Point]()
    for point in sorted(points, key=lambda point: point[axis]):
        value = point["fewshot"][metric] if metric else point["accuracy"]
        if axis == "images" or value > best:
            found.append(point)
        best = max(best, value)
    return found


def _row(point: Point) -> list[str]:
    low, high = (map(percent, point["interval"])) if point["interval"] else ("", "")
    return [
        NAMES[point["family"]],
        f"{point['parameters']:,}",
        f"{point['images']:,}",
        f"{point['examples']:,}",
        f"{point['flops'] / 1e12:,.3g}",
        f"{point['seconds']:,.0f}",
        f"{point['seeds']}",
        percent(point["accuracy"]),
        f"{low} to {high}" if low else "one seed",
    ]

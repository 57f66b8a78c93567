"""Runs beside each other on one page: scores with intervals, differences, curves, what was set otherwise, images.

    page([Judged(folder, run, metrics, result), ...], source)

A difference is told with the 95 % interval of a paired comparison, where both runs judged the same images: of two runs
on 2,000 images that agree on most, it is a third as wide as what the two intervals of their own suggest.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.config import dump
from vitrail.data.sources.source import Source
from vitrail.evaluate.results import SingleLabel, accuracy_interval, difference
from vitrail.log import read_history
from vitrail.models.cost import flops, parameters
from vitrail.report.charts import Chart, Line, lines
from vitrail.report.html import Figure, of_source, percent, render
from vitrail.report.run_page import flat, steps
from vitrail.run import Run

COLOURS: tuple[Literal["a", "b", "c", "d"], ...] = ("a", "b", "c", "d")
SHOWN = 12  # images that one run is right on and another is not


@dataclass(frozen=True, eq=False)
class Judged:
    """A run and what was found of it on validation images. result: None where it has no accuracy."""

    folder: Path
    run: Run
    metrics: Mapping[str, float]
    result: SingleLabel | None


def page(judged: Sequence[Judged], source: Source) -> str:
    """The page of two runs to four. source: the images that the first one was judged on."""
    folders = [str(one.folder) for one in judged]
    rows = list(_rows(judged))
    pairs = [pair for one in judged[1:] if (pair := _pair(judged[0], one, source))]
    settings = list(_differing(judged))
    shown = {"runs": folders, "metrics": [dict(one.metrics) for one in judged], "settings": settings}
    shown["differences"] = [
        {name: pair[name] for name in ("one", "other", "difference", "low", "high")} for pair in pairs
    ]
    return render(
        "compare.html",
        shown,
        title="Runs compared",
        subtitle=", ".join(folders),
        rows=rows,
        pairs=pairs,
        curves=_curves(judged),
        settings=settings,
        folders=folders,
    )


def _rows(judged: Sequence[Judged]) -> Iterator[list[str]]:
    for one in judged:
        history = read_history(one.folder / "metrics.jsonl")
        seconds, accuracy = history.speed(one.run.batch)[0], one.metrics.get("accuracy")
        score, name = "", next((n for n in one.run.task.best if n in one.metrics), "")
        if accuracy is not None:
            count = round(one.metrics["samples"])
            low, high = accuracy_interval(round(accuracy * count), count)
            score = f"{percent(accuracy)} ({percent(low)} to {percent(high)})"
        elif name:
            score = f"{name} {one.metrics[name]:.4g}"
        loss = one.metrics.get("loss", math.nan)
        work = 3 * flops(one.run.model, one.run.preprocessing.image_size) * steps(history) * one.run.batch
        numbers = [f"{parameters(one.run.model):,}", f"{steps(history):,.0f}", f"{work / 1e12:,.4g}", f"{seconds:,.0f}"]
        yield [str(one.folder), one.run.recipe, score, f"{loss:.4g}", *numbers]


def _pair(one: Judged, other: Judged, source: Source) -> dict[str, Any] | None:
    """How the second differs from the first, on the images that both judged; None where there are none."""
    first, second = one.result, other.result
    if first is None or second is None or first.class_names != second.class_names:
        return None
    indices, mine, theirs = np.intersect1d(first.indices, second.indices, assume_unique=True, return_indices=True)
    if not len(indices) or (first.targets[mine] != second.targets[theirs]).any():
        return None
    right, after = first.correct[mine], second.correct[theirs]
    found, low, high = difference(right, after)
    channels = len(one.run.preprocessing.mean)

    def figures(places: NDArray[np.int64]) -> Iterator[Figure]:
        for place in places[:SHOWN].tolist():
            if shown := of_source(source, int(indices[place]), channels):
                names = first.class_names
                said = {"truth": names[first.targets[mine[place]]], "one": names[first.predicted[mine[place]]]}
                yield shown, said | {"other": names[second.predicted[theirs[place]]]}

    return {
        "one": str(one.folder),
        "other": str(other.folder),
        "images": len(indices),
        "difference": found,
        "low": low,
        "high": high,
        "same": float((first.predicted[mine] == second.predicted[theirs]).mean()),
        "gained": int((after & ~right).sum()),
        "lost": int((right & ~after).sum()),
        "better": list(figures(np.flatnonzero(after & ~right))),
        "worse": list(figures(np.flatnonzero(right & ~after))),
    }


def _curves(judged: Sequence[Judged]) -> list[Chart]:
    found = []
    names = dict.fromkeys(["loss", *(name for one in judged for name in one.run.task.best)])
    for name in names:
        drawn = list[Line]()
        for one, colour in zip(judged, COLOURS, strict=False):
            series = read_history(one.folder / "metrics.jsonl").evaluations
            if name in series:
                drawn.append(replace(Line(one.folder.name, *series[name], dots=True), colour=colour))
        found.append(lines(f"Validation {name}", drawn, percent=name in ("accuracy", "mAP")))
    return [chart for chart in found if chart]


def _differing(judged: Sequence[Judged]) -> Iterator[list[str]]:
    """(setting, its value in each run) of those that are not the same in all."""
    found = [dict(flat(dump(one.run))) for one in judged]
    for name in dict.fromkeys(name for settings in found for name in settings):
        values = [settings.get(name, "") for settings in found]
        if len(set(values)) > 1:
            yield [name, *values]

"""The page of a run: report.html in its folder, one file, from what the folder holds and what the evaluators found.

    write_report(folder, run, splits.val, trainer.results, metrics, trainer.notes)
    page(folder, run, splits.val, results, metrics, (), looks)      # the same as text, with where the model looks

templates/run.html has the order: the result, what was run, remarks, pictures, curves, classes, mistakes, settings, what
is next.
"""

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.config import dump
from vitrail.data.sources.source import Source
from vitrail.evaluate import Result
from vitrail.evaluate.results import ClassificationResult
from vitrail.evaluate.summary import document
from vitrail.evaluate.watch import Pictures
from vitrail.log import History, Series, read_history
from vitrail.models.cost import parameters
from vitrail.report.charts import Chart, Line, lines, smooth
from vitrail.report.classification import section
from vitrail.report.html import Thumbnail, render
from vitrail.report.pictures import gallery
from vitrail.run import Run, versions

LEFT_OUT = ("skipped: ", "left out: ")  # what notes of images that cannot be read begin with
TITLES = {"loss": "Loss", "accuracy": "Accuracy", "mAP": "Mean average precision"}
COUNTS = ("samples", "unreadable")  # metrics that say nothing of the model


def write_report(folder: Path, *found: Any) -> None:
    """Writes the page. found: as `page` takes it."""
    (folder / "report.html").write_text(page(folder, *found), encoding="utf-8")


def page(
    folder: Path,
    run: Run,
    source: Source,
    results: Mapping[str, Result],
    result: Mapping[str, float],
    notes: Sequence[str],
    looks: Callable[[int], Thumbnail | None] | None = None,
) -> str:
    """The page. source: the validation images. results: what the evaluators found besides numbers. result: the metrics
    of the final evaluation. notes: remarks of the run. looks: where the model looks in an image of the source."""
    history = read_history(folder / "metrics.jsonl")
    seconds, speed, waiting = history.speed(run.batch)
    gpu = run.device != "cpu" and torch.cuda.is_available()
    classified = [found for found in results.values() if isinstance(found, ClassificationResult)]
    judged = document((result, results)) if "samples" in result else {"metrics": dict(result)}
    return render(
        "run.html",
        {"run": dump(run), **judged},
        title=str(folder),
        subtitle=f"{run.recipe} on {run.data.path}, seed {run.seed}",
        classified=[section(found, source, len(run.preprocessing.mean), looks) for found in classified],
        pictures=[gallery(found) for found in results.values() if isinstance(found, Pictures)],
        found=_others(results, result),
        lines=judged.get("found", []),
        run=run,
        parameters=parameters(run.model),
        steps=steps(history),
        seconds=round(seconds),
        speed=speed,
        waiting=waiting,
        metrics=[f"{name} {value:.4g}" for name, value in result.items() if name not in COUNTS],
        device=torch.cuda.get_device_name() if gpu else f"CPU, {os.cpu_count()} cores",
        platform=platform.platform(),
        versions=[f"{name} {number}" for name, number in versions().items()],
        notes=[note for note in notes if not note.startswith(LEFT_OUT)],
        unread=[note for note in notes if note.startswith(LEFT_OUT)],
        curves=_curves(history, run.task.best),
        settings=list(flat(dump(run))),
    )


def steps(history: History) -> float:
    """The last that was logged."""
    return max((float(places[-1]) for places, _ in history.training.values()), default=0.0)


def _others(results: Mapping[str, Result], numbers: Mapping[str, float]) -> list[list[str]]:
    """What no section of its own shows: the other numbers, and the kinds of the other results."""
    shown = {name for found in results.values() if isinstance(found, ClassificationResult) for name in found.metrics}
    rows = [[name, f"{value:.4g}"] for name, value in numbers.items() if name not in {*shown, *COUNTS}]
    own = ClassificationResult | Pictures
    return rows + [[n, type(r).__name__] for n, r in results.items() if not (isinstance(r, own) or r.lines())]


def _curves(history: History, best: Sequence[str]) -> list[Chart]:
    """Six charts, those of which there is something to show. best: the metrics that choose the best checkpoint."""
    logged, evaluated = history.training, history.evaluations
    score = next((name for name in best if name in evaluated), best[0])
    charts = [
        lines(
            TITLES.get(name, name),
            _noisy(logged, name, "training") + _plain(evaluated, name, "validation"),
            percent=name in ("accuracy", "mAP"),
        )
        for name in dict.fromkeys(("loss", score))
    ]
    charts += [
        lines("Learning rate", _plain(logged, "lr"), zero=True),
        lines("Norm of the gradient", _noisy(logged, "gradient_norm"), zero=True),
        lines("Images per second", _plain(logged, "images_per_second"), zero=True),
        lines("Fraction of the time spent waiting for images", _plain(logged, "data_wait"), percent=True, zero=True),
    ]
    return [chart for chart in charts if chart]


def _noisy(series: Series, key: str, name: str = "") -> list[Line]:
    """The values, faint, behind their running mean."""
    if key not in series:
        return []
    steps, values = (axis[np.isfinite(series[key][1])] for axis in series[key])
    return [Line("", steps, values, faint=True), Line(name, steps, smooth(values))]


def _plain(series: Series, key: str, name: str = "") -> list[Line]:
    return [Line(name, *series[key], colour="b" if name else "c", dots=bool(name))] if key in series else []


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, value) of every field of a run as `dump` has it, those of fields by their path."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value.keys() == {"kind", "config"}:
            yield prefix + name, value["kind"]
            value = value["config"]
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)

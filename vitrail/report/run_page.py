"""The page of a run: report.html in its folder, one file, from what the folder holds and what an examination found.

    write_report(folder, run, source, Accuracy(source).examine(task), result, notes)

First the result and what was run, then what went wrong on the way, the curves, the classes and the worst mistakes; last
every setting, and what to type next.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.config import dump
from vitrail.data.sources.source import Source
from vitrail.evaluate import Result
from vitrail.evaluate.results import ClassificationResult
from vitrail.log import History, Series, read_history
from vitrail.models.cost import parameters as count
from vitrail.report.charts import Line, lines, side_by_side, smooth
from vitrail.report.classification import details, headline, percent
from vitrail.report.html import Html, code, document, facts, folded, notice, paragraph, section, table
from vitrail.run import Run

WAITING = 0.05  # share of the time spent waiting for images, from which that is worth a remark
LEFT_OUT = ("skipped: ", "left out: ")  # what notes of images that cannot be read begin with
LISTED = 1000  # of them


def write_report(
    folder: Path,
    run: Run,
    source: Source,
    results: Mapping[str, Result],
    result: Mapping[str, float],
    notes: Sequence[str] = (),
    parameters: int | None = None,
) -> Path:
    """Writes the page and returns its path.

    source: the validation images. results: what the evaluators found besides numbers. result: the metrics of the final
    evaluation. notes: remarks of the run. parameters: of the model; None counts those of run.model.
    """
    history = read_history(folder / "metrics.jsonl")
    size = count(run.model) if parameters is None else parameters
    settings = table(["setting", "value"], _flat(dump(run)))
    classified = [found for found in results.values() if isinstance(found, ClassificationResult)]
    body = [
        *(headline(found) for found in classified),
        facts(_about(folder, run, size, history, result)),
        *_remarks(notes, history.speed(run.batch)[2]),
        _curves(history),
        *(piece for found in classified for piece in details(found, source, len(run.preprocessing.mean))),
        section("Settings", folded("Every setting of this run", settings)),
        section("What to type next", code(_next(folder, run))),
    ]
    path = folder / "report.html"
    subtitle = f"{run.recipe} on {run.data.path}, seed {run.seed}"
    path.write_text(document(str(folder), body, subtitle), encoding="utf-8")
    return path


def _about(folder: Path, run: Run, size: int, history: History, result: Mapping[str, float]) -> list[tuple[str, str]]:
    """What was run, where, how long."""
    seconds, speed, waiting = history.speed(run.batch)
    machine, versions = _record(folder / "run.json", "machine"), _record(folder / "run.json", "versions")
    gpu = run.device != "cpu" and torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else f"CPU, {machine.get('cores', '?')} cores"
    steps = max((float(steps[-1]) for steps, _ in history.training.values()), default=0.0)
    scores = [f"{name} {value:.4g}" for name, value in result.items() if name not in ("samples", "unreadable")]
    return [
        ("model", f"{_model(asdict(run.model))}, {size:,} parameters"),
        ("start", run.start or "from scratch"),
        ("data", run.data.path),
        ("training", f"{steps:,.0f} steps of {run.batch:,} images ({run.duration})"),
        ("time", f"{_time(seconds)}, without evaluations"),
        ("speed", f"{speed:,.0f} images/s, {percent(waiting)} of the time waiting for images"),
        ("held back", ", ".join(scores)),
        ("machine", f"{device}, {machine.get('platform', '?')}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
    ]


def _remarks(notes: Sequence[str], waiting: float) -> Iterator[Html]:
    """What went wrong, or might go better; images that could not be read as one remark and a list."""
    yield from (notice(note[:1].upper() + note[1:]) for note in notes if not note.startswith(LEFT_OUT))
    if waiting > WAITING:
        yield notice(
            f"Training waited for images for {percent(waiting)} of its time. More processes prepare them faster "
            "(--workers), and so do smaller files: shrink the photographs to twice the size that the model reads."
        )
    if unread := [note for note in notes if note.startswith(LEFT_OUT)]:
        yield notice(f"Images that could not be read and were left out: {len(unread):,}.")
        which = "Which, and why" if len(unread) <= LISTED else f"Which, and why, of the first {LISTED:,}"
        yield folded(which, *(paragraph(note) for note in unread[:LISTED]))


def _curves(history: History) -> Html:
    """Six charts, those of which there is something to show."""
    logged, judged = history.training, history.evaluations
    score = "mAP" if "mAP" in judged else "accuracy"
    scores = [*_noisy("training", logged, score), *_judged(judged, score)]
    charts = [
        lines("Loss", [*_noisy("training", logged, "loss"), *_judged(judged, "loss")]),
        lines("Accuracy" if score == "accuracy" else "Mean average precision", scores, percent=True),
        lines("Learning rate", _plain(logged, "lr"), zero=True),
        lines("Norm of the gradient", _noisy("", logged, "gradient_norm"), zero=True),
        lines("Images per second", _plain(logged, "images_per_second"), zero=True),
        lines("Share of the time spent waiting for images", _plain(logged, "data_wait"), percent=True, zero=True),
    ]
    shown = side_by_side(*charts) if any(charts) else paragraph("Nothing was logged, so there are no curves.")
    return section("Curves over the steps", shown)


def _noisy(name: str, series: Series, key: str) -> list[Line]:
    """The values, faint, behind their running mean."""
    if key not in series:
        return []
    steps, values = (axis[np.isfinite(series[key][1])] for axis in series[key])
    return [Line("", steps, values, faint=True), Line(name, steps, smooth(values))]


def _judged(series: Series, key: str) -> list[Line]:
    return [Line("held back", *series[key], colour="b", dots=True)] if key in series else []


def _plain(series: Series, key: str) -> list[Line]:
    return [Line("", *series[key], colour="c")] if key in series else []


def _model(config: Mapping[str, Any]) -> str:
    if "patch_size" not in config:
        return f"BiT ResNet, blocks {'-'.join(map(str, config['blocks']))}, {config['width_factor']} times as wide"
    stem = " on a ResNet" if config["stem"] else ""
    size = " × ".join(map(str, config["image_size"]))
    patch = " × ".join(map(str, config["patch_size"]))
    return f"ViT{stem}, {size} images, {patch} patches, width {config['width']}, {config['depth']} blocks"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """(name, value) of every field, those of fields by their path."""
    rows = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append(
                [
                    f"{prefix}{name}",
                    value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False),
                ]
            )
    return rows


def _next(folder: Path, run: Run) -> str:
    """Commands and what each is for."""
    here, data = shlex.quote(str(folder)), shlex.quote(run.data.path)
    again = f"vitrail train {shlex.quote(run.recipe)} --data {data}"
    if run.start:
        again = f"vitrail finetune {data} --weights {shlex.quote(run.start)}"
    elif run.recipe == "demo":
        again = f"vitrail demo --data {data}"
    commands = {
        f"vitrail predict {here} IMAGE": "what images show; of folders, too",
        f"vitrail evaluate {here} DATA": "how good it is on other images",
        f"{again} --out FOLDER --duration TIME": 'again, for longer, such as "30 epochs"',
        f"vitrail convert {here} TARGET --to timm": "for timm; or google, huggingface, torchvision",
    }
    return "\n".join(f"# {what}\n{command}" for command, what in commands.items())


def _record(path: Path, part: str) -> dict[str, Any]:
    """A part of run.json as it is; nothing where it cannot be read."""
    try:
        found = json.loads(path.read_text())[part]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _time(seconds: float) -> str:
    """7512.3 -> "2 h 5 min"."""
    minutes, whole = round(seconds / 60), round(seconds)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"

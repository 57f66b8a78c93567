"""`vitrail export`: a model as one file for other runtimes, judged on images before it is kept; `vitrail
benchmark-export`: all of them in one table."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from tyro.conf import Positional, arg

from vitrail.cli.evaluate import Evaluate
from vitrail.cli.opening import Using
from vitrail.cli.options import Command, Flag, Given, Model
from vitrail.progress import say

if TYPE_CHECKING:
    import numpy as np

    from vitrail.data.sources.source import Source
    from vitrail.evaluate import Evaluator, Validation
    from vitrail.evaluate.evaluator import Result
    from vitrail.pipeline import Pipeline
    from vitrail.tasks import Task
    from vitrail.tasks.exported import Exported

Format = Literal["onnx", "openvino", "pt2"]
CALIBRATION = 300  # images, NNCF's default
BATCHES, ROUNDS, SECONDS = (1, 16), 10, 4.0  # of timing; of each batch at most so long
Size = Annotated[tuple[int, int] | Literal["any"] | None, arg(metavar="H [W]|any", help_behavior_hint="")]


class Lossy(Exception):
    """A file loses more than the limit."""


@dataclass
class Row:
    """What is known of PyTorch or of one file. change: (difference, low, high) of its first metric to PyTorch's, low
    and high NaN where that has no interval. seconds: of each of BATCHES."""

    name: str
    bytes: int
    metrics: dict[str, float] = field(default_factory=dict)
    change: tuple[float, float, float] | None = None
    same: float | None = None
    seconds: tuple[float, ...] = ()


@dataclass(kw_only=True)
class _Exporting(Using, Command):
    """What both commands have in common."""

    model: Model
    """A run folder such as runs/demo, a model folder, a file with weights, or hf-hub:OWNER/NAME."""
    data: Positional[Annotated[str, arg(metavar="[DATA]", help_behavior_hint="")]] = ""
    """Labelled images to judge by. For a run, the default is its own validation images."""
    image_size: Size = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Height and width in pixels of the images that the file takes, or any. The default is the model's own size, and
    any where the model takes images at their own."""

    def options(self) -> dict[str, Any]:
        return super().options() | {"image_size": None if self.image_size == "any" else self.image_size}

    def prepare(self, given: Given) -> "_Judge":
        """The model, and the images that it is judged by, if there are any."""
        pipeline = self.pipeline(self.model, cpu=True)
        judging = Evaluate(model=self.model, data=self.data, classes=self.classes, code=self.code)
        run = judging.made()
        if not self.data and run is None:
            say("no images are named, so the file's answers are compared on random ones alone; name DATA to judge it")
            return _Judge(self.model, pipeline)
        evaluators = judging.evaluators(run, pipeline.task)
        task, data, _ = judging.opened(run, pipeline.task, given, evaluators, say)
        return _Judge(self.model, pipeline, evaluators, data, task)


class _Judge:
    """Measures PyTorch once, and each file beside it."""

    def __init__(
        self,
        name: str,
        pipeline: "Pipeline",
        evaluators: "Sequence[Evaluator]" = (),
        data: "Validation | None" = None,
        task: "Task | None" = None,
    ) -> None:
        from vitrail.evaluate.evaluator import judge
        from vitrail.runtime.inference import prepared

        self.pipeline, self.evaluators, self.data = pipeline, evaluators, data
        weights = sum(p.numel() * p.element_size() for p in pipeline.task.parameters())
        self.torch, self.result = Row("PyTorch", weights), None
        self.best = pipeline.task.config.best
        if data is not None and task is not None:
            self.torch.metrics, found = judge(evaluators, prepared(task), data)
            self.result = found.get("classification")
        self.rows = [self.torch]

    def row(self, file: "Exported", size: int) -> Row:
        """Of an opened file of so many bytes; PyTorch's times are those of the last one."""
        from vitrail.evaluate.evaluator import judge

        row = Row(file.session.runtime + (", int8" if "int8" in file.session.about.precision else ""), size)
        if self.data is not None:
            targets = self.data.source.targets
            data = replace(self.data, keep=False, shared={})
            row.metrics, found = judge(self.evaluators, file.for_targets(targets), data)
            row.change, row.same = _change(self.torch.metrics, row.metrics, self.best, self.result, found)
        self.torch.seconds, row.seconds = _times(self.pipeline.task, file)
        self.rows.append(row)
        return row

    def calibration(self) -> "list[np.ndarray]":
        """Images as the model takes them, to calibrate by: of those that were trained on, where there are some."""
        from vitrail.data.loader import evaluation
        from vitrail.data.sources.fingerprint import spread
        from vitrail.data.sources.source import Subset

        if self.data is None:
            raise ValueError("--int8 needs labelled images, to tell what it loses; name them after the model.")
        source: Source = self.data.train or self.data.source
        some = Subset(source, spread(len(source), CALIBRATION))
        collate = self.pipeline.task.config.collate
        read = {"batch": 1, "workers": 0, "skipped": say}
        batches = evaluation(some, self.data.preprocessing, partial(collate, source=some), **read)
        return [batch["images"][0].numpy() for batch in batches]

    def document(self) -> list[dict[str, Any]]:
        return [
            {
                "name": row.name,
                "bytes": row.bytes,
                "metrics": row.metrics,
                "difference": row.change and [None if v != v else v for v in row.change],
                "same": row.same,
                "seconds": dict(zip(map(str, BATCHES), row.seconds, strict=False)),
            }
            for row in self.rows
        ]

    def text(self) -> str:
        """A table."""
        metric = _first(self.torch.metrics, self.best)
        head = ["", *([metric, "difference", "same answers"] if metric else [])]
        head += [f"ms, batch {n}" for n in BATCHES] + ["MB"]
        lines = [head]
        for row in self.rows:
            cells = [row.name]
            if metric:
                cells += [
                    f"{row.metrics[metric]:.2%}",
                    _shown(row.change),
                    "" if row.same is None else f"{row.same:.2%}",
                ]
            lines.append([*cells, *(f"{1000 * one:.1f}" for one in row.seconds), f"{row.bytes / 1e6:.1f}"])
        wide = [max(len(line[place]) for line in lines) for place in range(len(head))]
        return "\n".join(
            "  ".join([line[0].ljust(wide[0]), *(cell.rjust(w) for cell, w in zip(line[1:], wide[1:], strict=True))])
            for line in lines
        )


@dataclass(kw_only=True)
class Export(_Exporting):
    """Write a model as one file for ONNX Runtime, OpenVINO or torch.export.

    Preprocessing, class names and task are in the file, so that vitrail predict and evaluate take it in the model's
    place. It is kept if it answers as PyTorch does; with labelled images, what it loses on them is told, too. Exit
    status: 0 done, 1 where int8 loses too much and there is no file, 2 bad input. docs/export.md has more.
    """

    to: Format = "onnx"
    """Which runtime it is for: ONNX Runtime, OpenVINO, or torch.export, from which others are made (docs/export.md)."""
    out: Annotated[str, arg(metavar="FILE", help_behavior_hint="")] = ""
    """The file to write, for OpenVINO a folder. The default is beside the model, under its name."""
    int8: Flag = False
    """In 8 bits: smaller, faster, a little less exact. Needs labelled images, to tell how much."""
    max_loss: Annotated[float, arg(metavar="POINTS")] = 2.0
    """Of --int8: how many points of 100 of its first metric it may lose; at more, no file is written."""
    triton: Flag = False
    """FILE is a model's folder in Triton's repository: the file goes into its folder 1, beside a config.pbtxt."""
    json: Flag = False
    """Print one JSON document: {file, to, image_size, precision, rows}, rows as the table has them; file is null where
    there is none."""

    def run(self, given: Given) -> None:
        from vitrail.export import ENDINGS, export

        target = Path(self.out) if self.out else _beside(self.model, ENDINGS[self.to], self.int8)
        if self.triton:
            if self.to == "pt2" or not self.out:
                raise ValueError(
                    "--triton writes a folder of Triton's repository: name it with --out, and take --to onnx."
                )
            target = target / "1" / ("model.onnx" if self.to == "onnx" else "")
        judge = self.prepare(given)
        images = judge.calibration() if self.int8 else None

        def accept(file: "Exported") -> None:
            row = judge.row(file, 0)
            if self.int8 and row.change is not None and 100 * row.change[0] < -self.max_loss:
                raise Lossy(
                    f"int8 loses {-100 * row.change[0]:.1f} points, more than the {self.max_loss:g} of --max-loss"
                )

        say(f"exporting {self.model} to {target}")
        try:
            made = export(judge.pipeline, target, self.to, self.image_size, images, accept)
        except Lossy as error:
            self.answer({"file": None, "to": self.to, "rows": judge.document()}, judge.text())
            say(f"vitrail: {error}; there is no file.")
            sys.exit(1)
        judge.rows[-1].bytes = _bytes(target)
        file: Any = made.task
        about = file.session.about
        if self.triton:
            (Path(self.out) / "config.pbtxt").write_text(triton(Path(self.out).name, self.to, file))
        answer = {"file": str(target), "to": self.to, "image_size": about.size or "any", "precision": about.precision}
        size = "images of any size" if about.size is None else f"images of {about.size[0]} x {about.size[1]}"
        self.answer(answer | {"rows": judge.document()}, f"{judge.text()}\n{target}: {size}, {about.precision}")


@dataclass(kw_only=True)
class BenchmarkExport(_Exporting):
    """Export a model to every format, judge each on the same images, and show one table.

    Exit status: 0 done, 1 where a format could not be made, 2 bad input.
    """

    to: Annotated[tuple[Format, ...], arg(metavar="FORMAT...", help_behavior_hint="")] = ("onnx", "openvino", "pt2")
    """Which formats: onnx, openvino, pt2."""
    out: Annotated[str, arg(metavar="FOLDER", help_behavior_hint="")] = ""
    """Where the files are written. The default is a folder `exports` beside the model."""

    def run(self, given: Given) -> None:
        from vitrail.export import ENDINGS, METHODS, export

        for name in self.to:
            if name not in get_args(Format):
                raise ValueError(f"there is no format {name!r}, but {', '.join(get_args(Format))}.")
        folder = Path(self.out) if self.out else _beside(self.model, ".x", False).parent / "exports"
        judge, failed = self.prepare(given), list[str]()
        calibration = judge.calibration() if judge.data is not None else None
        for name in self.to:
            for int8 in (False, True) if name in METHODS and calibration else (False,):
                target = folder / f"model{'-int8' * int8}{ENDINGS[name]}"
                say(f"exporting to {target}")
                try:
                    made: Any = export(judge.pipeline, target, name, self.image_size, calibration if int8 else None)
                except ValueError as error:
                    failed.append(f"{target}: {error}")
                    say(f"vitrail: {failed[-1]}")
                    continue
                judge.row(made.task, _bytes(target))
        self.answer({"rows": judge.document(), "failed": failed}, judge.text())
        if failed:
            sys.exit(1)


def _beside(model: str, ending: str, int8: bool) -> Path:
    """runs/pets/pets.onnx of the run runs/pets, beside other folders and files; ./NAME.onnx of a name on the Hub."""
    path = Path(model)
    name = path.resolve().name if path.is_dir() else path.stem
    folder = path if (path / "run.json").is_file() else path.parent if path.exists() else Path()
    return folder / f"{name.partition(':')[2] or name}{'-int8' * int8}{ending}"


def triton(name: str, to: Format, file: "Exported") -> str:
    """config.pbtxt for a server of NVIDIA's, Triton; not tried with one. Batches are made by it, from requests."""
    import numpy as np

    about = file.session.about
    sample = np.zeros((1, about.model.channels, *(about.size or about.model.image_size)), np.uint8)
    shapes = [("images", "UINT8", [about.model.channels, *(about.size or (-1, -1))])]
    shapes += [(n, "FP32", v.shape[1:]) for n, v in zip(about.outputs, file.session.run(sample), strict=True)]
    parts = [
        f'{{ name: "{n}" data_type: TYPE_{kind} dims: [ {", ".join(map(str, dims))} ] }}' for n, kind, dims in shapes
    ]
    backend = "onnxruntime" if to == "onnx" else "openvino"
    lines = [f'name: "{name}"', f'backend: "{backend}"', "max_batch_size: 64", f"input [ {parts[0]} ]"]
    return "\n".join([*lines, f"output [ {', '.join(parts[1:])} ]", "dynamic_batching { }", ""])


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def _first(metrics: dict[str, float], best: Sequence[str]) -> str:
    """The metric that the table shows."""
    return next((name for name in (*best, *metrics) if name in metrics and name not in ("samples", "loss")), "")


def _change(
    torch: dict[str, float],
    metrics: dict[str, float],
    best: Sequence[str],
    result: "Result | None",
    found: "dict[str, Result]",
) -> tuple[tuple[float, float, float] | None, float | None]:
    """(the difference of the first metric with its interval, the fraction of the same answers)."""
    from vitrail.evaluate.results import ClassificationResult, SingleLabel, agreement, difference

    name, other = _first(torch, best), found.get("classification")
    same = None
    if isinstance(result, ClassificationResult) and isinstance(other, ClassificationResult):
        same = agreement(result, other)
    if name == "accuracy" and isinstance(result, SingleLabel) and isinstance(other, SingleLabel):
        return difference(result.correct, other.correct), same
    return ((metrics[name] - torch[name], float("nan"), float("nan")) if name else None), same


def _shown(change: tuple[float, float, float] | None) -> str:
    if change is None:
        return ""
    value, low, high = (100 * one for one in change)
    return f"{value:+.2f}" + (f" ({low:+.2f} to {high:+.2f})" if low == low else "")


def _times(task: "Task", file: "Exported") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Medians of both, turn by turn, in seconds, for each of BATCHES."""
    import torch

    from vitrail.runtime.inference import prepared

    fast, found = prepared(task), []
    about = file.session.about
    for count in BATCHES:
        images = torch.zeros(count, about.model.channels, *(about.size or about.model.image_size), dtype=torch.uint8)
        turns, end = list[tuple[float, float]](), time.monotonic() + SECONDS
        with torch.inference_mode():
            while len(turns) < 3 or (len(turns) < ROUNDS and time.monotonic() < end):
                began = time.perf_counter()
                fast.outputs(images)
                middle = time.perf_counter()
                file.outputs(images)
                turns.append((middle - began, time.perf_counter() - middle))
        found.append(tuple(median(column) for column in zip(*turns[1:], strict=True)))  # the first one warms up
    mine, theirs = zip(*found, strict=True)
    return mine, theirs

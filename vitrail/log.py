"""Logging: metrics.jsonl, TensorBoard and the progress line; and metrics.jsonl read back as series.

with Log(folder, total=1710, done=0) as log:
    log.count(images=64, waited=0.01)
    log.step(step, {"loss": ..., "lr": ...})
    log.evaluation(step, {"accuracy": ..., "loss": ...})
    log.note(step, "3 images could not be read.")
history = read_history(folder / "metrics.jsonl")
steps, losses = history.training["loss"]
"""

import json
import math
import os
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from vitrail.progress import LIVE, QUIET_SECONDS, bar, say

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Series = dict[str, NDArray[np.float64]]  # name -> (steps, values), of one length

SETTLED_SECONDS = 60.0  # after which compiling, filling caches and starting processes are done
JUDGED_SECONDS = 10.0  # of training, the least over which the fraction of waiting means something
WAITING = 0.05  # fraction of the time; more of it is reported
SLOW = "images come too slowly"


@dataclass(frozen=True)
class Watch:
    """What tells how well devices are used. flops: of an image's training; peak: FLOP/s of all devices, NaN where it is
    not known; memory: bytes that this process had at most, 0 likewise; rows: everybody's arrays, by rank."""

    flops: int
    peak: float
    memory: Callable[[], int]
    rows: Callable[[NDArray[Any]], NDArray[Any]]


class Log:
    """Writes one JSON line per logged step and shows the progress: how far, how fast, how much time is left.

    folder: gets metrics.jsonl; on resume, lines of steps that will be run again are removed first. total, done: the
    steps of the run, and those already done. tensorboard: whether its files are written, too. quiet: whether another
    process writes and speaks; this one only says what is wrong. watch: what is logged besides. ValueError where
    TensorBoard is not installed.
    """

    def __init__(
        self,
        folder: Path,
        total: int,
        done: int,
        tensorboard: bool = False,
        quiet: bool = False,
        watch: Watch | None = None,
    ) -> None:
        self.watch, self.waits = watch, np.zeros(1)
        self.path, self.total, self.done, self.quiet = folder / "metrics.jsonl", total, done, quiet
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        kept = _truncate(self.path, done, quiet)
        self.evaluations = {record["step"]: record["evaluation"] for record in kept if "evaluation" in record}
        self.notes = [record["note"] for record in kept if "note" in record]
        self.board = _board(folder, done) if tensorboard and not quiet else None
        self.file = (Path(os.devnull) if quiet else self.path).open("a")
        self.progress = bar("training", self.console)
        self.bar = self.progress.add_task("", total=total, completed=done, text="")
        self.started = self.since = self.spoke = time.perf_counter()
        self.counted: tuple[int, float] = 0, 0.0  # images, and seconds that were waited for them
        self.marked: tuple[int, float] | None = None
        self.judged = self.judged_wait = 0.0

    def __enter__(self) -> "Log":
        self.progress.start()
        LIVE.append(self.progress)
        return self

    def __exit__(self, *error: object) -> None:
        LIVE.remove(self.progress)
        self.progress.stop()
        self.file.close()
        if self.board:
            self.board.close()

    def count(self, images: int, waited: float) -> None:
        """Counts one step: its images, and the seconds that it waited for them."""
        self.counted = self.counted[0] + images, self.counted[1] + waited

    def mark(self) -> None:
        """Assigns what was counted so far to the next call of `step`, which may come after more has been counted."""
        self.marked, self.counted = self.counted, (0, 0.0)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Logs the metrics of a step, with the speed and the fraction of time spent waiting since the last call."""
        if self.marked is None:
            self.mark()
        assert self.marked
        (images, waited), self.marked = self.marked, None
        now = time.perf_counter()
        span = max(now - self.since, 1e-9)
        speed, waiting = images / span, waited / span
        seen = self._seen(speed, waiting)
        waiting = float(self.waits.max())
        record = {**metrics, "images_per_second": round(speed, 1), "data_wait": round(waiting, 4), **seen}
        self.write({"step": step, **record})
        self._draw("training", step, record)
        self._judge(step, span, waiting * span)
        self.since = now
        loss, lr = metrics["loss"], metrics["lr"]
        effort = f"{seen['mfu']:.1%} MFU  " if "mfu" in seen else f"{seen['tflops']:.2f} TFLOP/s  " if seen else ""
        text = f"loss {loss:.3f}  lr {lr:.2e}  {speed:.0f} images/s  {effort}waiting for data {waiting:.1%}"
        text += f" (rank {self.waits.argmax()})" if len(self.waits) > 1 and waiting > WAITING else ""
        self.progress.update(self.bar, completed=step, text=text)
        if not self.console.is_terminal and (now - self.spoke > QUIET_SECONDS or step == self.total):
            self.spoke = now
            left = (now - self.started) / max(step - self.done, 1) * (self.total - step)
            self.say(f"step {step}/{self.total}  {text}  left {timedelta(seconds=math.ceil(left))}")

    def _seen(self, speed: float, waiting: float) -> dict[str, Any]:
        """How much of the devices the training gets, and, of each process, its wait for images and its memory."""
        self.waits = np.array([waiting])
        if self.watch is None:
            return {}
        rows = self.watch.rows(np.array([[waiting, self.watch.memory() / 2**30]]))
        self.waits, rate = rows[:, 0], speed * self.watch.flops
        effort = {"mfu": round(rate / self.watch.peak, 4)} if math.isfinite(self.watch.peak) else {}
        ranks = {"data_wait": rows[:, 0].round(4).tolist(), "memory_gib": rows[:, 1].round(3).tolist()}
        own = ({"memory_gib": ranks["memory_gib"][0]} if rows[0, 1] else {}) | (
            {"ranks": ranks} if len(rows) > 1 else {}
        )
        return {"tflops": round(rate / 1e12, 4), **effort, **own}

    def evaluation(self, step: int, result: Mapping[str, float]) -> None:
        """Logs the metrics of an evaluation after `step` steps, once: a resumed run may reach that step again."""
        if step not in self.evaluations:
            self.write({"step": step, "evaluation": dict(result)})
            self._draw("validation", step, result)
            self.evaluations[step] = result

    def note(self, step: int, text: str) -> None:
        """Shows a line that the run's page repeats, once."""
        if text not in self.notes:
            self.notes.append(text)
            self.write({"step": step, "note": text})
            say(text, always=True) if self.quiet else self.say(text)

    def _judge(self, step: int, span: float, waited: float) -> None:
        """Notes once, well after the start, that images come too slowly."""
        if self.quiet or self.since - self.started < SETTLED_SECONDS:
            return
        self.judged, self.judged_wait = self.judged + span, self.judged_wait + waited
        if self.judged < JUDGED_SECONDS:
            return
        fraction, seconds = self.judged_wait / self.judged, self.judged
        self.judged = self.judged_wait = 0.0
        if fraction > WAITING and not any(note.startswith(SLOW) for note in self.notes):
            self.note(
                step,
                f"{SLOW}: training waited for them {fraction:.0%} of {seconds:.0f} s. Try more processes to prepare "
                "them (--workers), or store them small, once (vitrail data pack).",
            )

    def busy(self, text: str) -> None:
        """Shows what is being done besides training."""
        self.progress.update(self.bar, text=text)

    def write(self, record: dict[str, Any]) -> None:
        """Writes one line of metrics.jsonl, to the disk at once."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def say(self, text: str) -> None:
        """Shows a line on the terminal."""
        self.console.print(text, markup=False, soft_wrap=True)

    def _draw(self, where: str, step: int, numbers: Mapping[str, float]) -> None:
        if self.board:
            for name, value in numbers.items():
                self.board.add_scalar(f"{where}/{name}", value, step)

    def pause(self, seconds: float) -> None:
        """Excludes from the speed what was not training: evaluation, checkpoints."""
        self.since += seconds


def _board(folder: Path, done: int) -> "SummaryWriter":
    """TensorBoard's writer; steps after `done`, of a run that was killed, are removed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("tensorboard is not installed; pip install tensorboard, or train without it.") from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1 if done else None)


def _truncate(path: Path, done: int, quiet: bool) -> list[dict[str, Any]]:
    """Keeps the records up to step `done` and returns them: a killed run writes again what followed its last
    checkpoint. quiet: only returns them."""
    if not path.exists():
        return []
    kept = [record for record in records(path) if record["step"] <= done]
    if quiet:
        return kept
    partial = path.with_suffix(".partial")  # a kill at this moment must not cost the run its history
    partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
    partial.replace(path)
    return kept


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl, each with a numeric "step". Lines that are not records are left out, because a
    kill may cut one short."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int | float):
                yield record


@dataclass(frozen=True, eq=False)
class History:
    """training: the metrics that were logged of steps; evaluations: those on the validation images."""

    training: Series
    evaluations: Series

    def speed(self, batch: int) -> tuple[float, float, float]:
        """(seconds of training, images per second, fraction of the time spent waiting for images) over all steps, those
        before an interruption included, evaluations not. Zeros where nothing was logged."""
        steps, rates = self.training.get("images_per_second", np.empty((2, 0)))
        waits = self.training.get("data_wait", np.zeros((2, len(steps))))[1]
        if not len(steps) or len(waits) != len(steps):
            return 0.0, 0.0, 0.0
        images = np.diff(steps, prepend=0) * batch
        seconds = images / np.maximum(rates, 1e-9)
        return float(seconds.sum()), float(images.sum() / seconds.sum()), float((seconds * waits).sum() / seconds.sum())


def read_history(path: Path) -> History:
    """Reads a metrics.jsonl; the history is empty where there is no file."""
    training, evaluations = dict[str, array](), dict[str, array]()  # step, value, step, value, ...
    for record in records(path) if path.is_file() else ():
        step, found = record.pop("step"), record.get("evaluation")
        series, values = (evaluations, found) if isinstance(found, dict) else (training, record)
        for name, value in values.items():
            if isinstance(value, int | float):
                series.setdefault(name, array("d")).extend((step, value))
    made = (
        {name: np.frombuffer(pairs).reshape(-1, 2).T for name, pairs in of.items()} for of in (training, evaluations)
    )
    return History(*made)

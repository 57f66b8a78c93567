"""Whole trainings as processes, on cores of their own or in turn on all, and the accuracy that each ended with.

jobs = [Job("timm", 0, words, folder / "timm", timms_curve), ...]
run_all(jobs, [[0], [1]])           # two at a time, each on one core
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import timm_script
from benchmarks.machine import ROOT, usable_cores
from benchmarks.pool import KEEP_FREED, end, environment
from benchmarks.rounds import Record, say
from benchmarks.timm_script import Shape

DECAY, CLIP = 0.05, 1.0
Curve = list[tuple[int, float]]  # (epoch from 1, accuracy in [0, 1]) of each evaluation


@dataclass(frozen=True)
class Recipe:
    """A training in the terms that both libraries have. scale: of the random crop's area."""

    shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    lr: float
    batch: int
    scale: tuple[float, float]
    smoothing: float = 0.1

    def timm(self, script: Path, data: Path, output: Path, epochs: int, warmup: int, **more: Any) -> list[str]:
        """A run of timm's script: AdamW, `warmup` of the epochs before the cosine, flips and random crops; its
        summary.csv will lie in `output`."""
        images = {"train_split": "train", "val_split": "test", "mean": self.mean, "std": self.std}
        augment = {"scale": self.scale, "hflip": 0.5, "smoothing": self.smoothing}
        optimisation = {"lr": self.lr, "weight_decay": DECAY, "clip_grad": CLIP, "warmup_epochs": warmup}
        length = {"epochs": max(1, epochs - warmup), "batch_size": self.batch, "validation_batch_size": 500}
        where = {"output": output.parent, "experiment": output.name, "checkpoint_hist": 1, "log_interval": 1000}
        options = {**images, **augment, **optimisation, **length, **where, **more}
        return timm_script.command(script, self.shape, ["--data-dir", str(data)], **options)


@dataclass
class Job:
    """A process that trains, and its result. read: gets the evaluations, from its folder or from what it printed."""

    name: str
    seed: int
    command: list[str]
    folder: Path
    read: Callable[[Path], Curve]
    curve: Curve = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""

    def start(self, cores: Sequence[int]) -> subprocess.Popen[bytes]:
        """Starts it, on these cores or, without any, on all."""
        pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
        variables = environment(KEEP_FREED) | {"OMP_NUM_THREADS": str(len(cores) or usable_cores())}
        # A session of its own, which ends with all that it started.
        options: dict[str, Any] = {"cwd": ROOT, "env": variables, "start_new_session": True}
        with output(self.folder).open("wb") as out, output(self.folder, "log").open("wb") as log:
            return subprocess.Popen([*pinned, *self.command], stdout=out, stderr=log, **options)

    def done(self, code: int, seconds: float) -> None:
        """Reads its result, or why it failed."""
        self.seconds = round(seconds, 1)
        if code:
            self.error = f"status {code}\n{output(self.folder, 'log').read_text(errors='replace')[-1500:]}"
        else:
            self.curve = self.read(self.folder)
        say(f"{self.name}, seed {self.seed}: {self.error or f'{self.curve[-1][1]:.2%}'} after {seconds:.0f} s")

    def record(self) -> Record:
        """The job as a record of the JSON file."""
        errors = {f"{self.name}, seed {self.seed}": self.error} if self.error else {}
        found = {"runner": self.name, "seed": self.seed, "seconds": self.seconds, "curve": self.curve}
        return {"case": "training", "command": self.command, **found, "errors": errors}


def run_all(jobs: Sequence[Job], cores: Sequence[Sequence[int]]) -> None:
    """Runs each job on the first group of cores that is free, in order; one group of none is all cores in turn."""
    waiting, free, running = list(jobs), list(cores), []
    try:
        while waiting or running:
            while waiting and free:
                job, own = waiting.pop(0), free.pop(0)
                running.append((job, own, job.start(own), time.perf_counter()))
            time.sleep(0.2)
            for one in list(running):
                job, own, process, began = one
                if (code := process.poll()) is not None:
                    job.done(code, time.perf_counter() - began)
                    running.remove(one)
                    free.append(own)
    finally:
        for _, _, process, _ in running:
            end(process)


def output(folder: Path, kind: str = "out") -> Path:
    """Where a job's standard output goes, or ("log") its standard error: beside its folder."""
    return folder.with_name(f"{folder.name}.{kind}")


def timms_curve(folder: Path) -> Curve:
    """The evaluations of timm's script, whose output lies in the folder."""
    return timm_script.accuracies((folder / "summary.csv").read_text())


def printed(folder: Path) -> Curve:
    """The evaluation of a program that prints its accuracy as JSON, as `vitrail train --json` does."""
    found = json.loads(output(folder).read_text())
    return [(0, found.get("metrics", found)["accuracy"])]

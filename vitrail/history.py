"""What metrics.jsonl says of a run: series of numbers by step, and how long the training took.

history = read_history(folder / "metrics.jsonl")
steps, losses = history.training["loss"]
steps, scores = history.evaluations["accuracy"]
"""

import json
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Series = dict[str, tuple[Numbers, Numbers]]  # name -> (steps, values), as long as one another


@dataclass(frozen=True, eq=False)
class History:
    """training: what was logged of steps; evaluations: of the held-back images."""

    training: Series
    evaluations: Series

    def speed(self, batch: int) -> tuple[float, float, float]:
        """(seconds of training, images per second, share of the time spent waiting for images), of all steps, those
        before an interruption, too; evaluations are not in it. Zeros where nothing was logged."""
        steps, rates = self.training.get("images_per_second", (np.empty(0), np.empty(0)))
        waits = self.training.get("data_wait", (steps, np.zeros(len(steps))))[1]
        if not len(steps) or len(waits) != len(steps):
            return 0.0, 0.0, 0.0
        images = np.diff(steps, prepend=0) * batch
        seconds = images / np.maximum(rates, 1e-9)
        return float(seconds.sum()), float(images.sum() / seconds.sum()), float((seconds * waits).sum() / seconds.sum())


def read_history(path: Path) -> History:
    """Reads the file line by line, and leaves out what is no record: a killed run may have cut a line short. Without a
    file, the history is empty."""
    training: dict[str, tuple[array, array]] = {}
    evaluations: dict[str, tuple[array, array]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                _note(line, training, evaluations)
    return History(_series(training), _series(evaluations))


def _note(line: str, training: dict[str, tuple[array, array]], evaluations: dict[str, tuple[array, array]]) -> None:
    try:
        record = json.loads(line)
        step = float(record.pop("step"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    found = record.get("evaluation")
    series, values = (evaluations, found) if isinstance(found, dict) else (training, record)
    for name, value in values.items():
        if isinstance(value, int | float):
            steps, numbers = series.setdefault(name, (array("d"), array("d")))
            steps.append(step)
            numbers.append(value)


def _series(found: dict[str, tuple[array, array]]) -> Series:
    return {name: (np.frombuffer(steps), np.frombuffer(values)) for name, (steps, values) in found.items()}

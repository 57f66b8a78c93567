"""What the runs of a study say: means over seeds, fits, predictions of the largest runs, claims and how sure they are.

found = findings(rows, "data-size")         # a document for JSON and for the page
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from vitrail.study.fit import COARSE, RESAMPLES, Law, Numbers, TooFew, draws, fit, interval
from vitrail.study.grid import Cell, Preset

FEWSHOT = "fewshot_"  # before the number of shots, in the names of metrics
BASELINE = "resnet"
Resamples = Sequence[tuple[Numbers, int]]


@dataclass(frozen=True)
class Row:
    """A run that has ended. flops: of its training. parameters: without embeddings and head. examples: that it saw.
    seconds: of training, those of its trunk included."""

    cell: Cell
    flops: float
    parameters: int
    examples: int
    seconds: float
    metrics: Mapping[str, float]

    @property
    def accuracy(self) -> float:
        """On the validation images."""
        return self.metrics["accuracy"]

    @property
    def error(self) -> float:
        """1 - accuracy; none at all counts as half an image."""
        return max(1 - self.accuracy, 0.5 / self.metrics["samples"])

    def place(self, preset: Preset) -> tuple[int, ...]:
        """Along the axes of a preset's fits: images, or parameters and examples."""
        return (self.cell.images,) if preset != "compute" else (self.parameters, self.examples)


def findings(rows: Sequence[Row], preset: Preset) -> dict[str, Any]:
    """points: means over seeds, a row for each different run. fits, predictions: of each family's error, or why there
    are none. claims: sentences, with the fraction of resamples in which they hold. noise: of an error, relative to it.
    correlations: of few-shot metrics with the final accuracy. All intervals are over resampled seeds."""
    families = list(dict.fromkeys(row.cell.family for row in rows))
    by = {family: [row for row in rows if row.cell.family == family] for family in families}
    points = [point for family in families for point in _points(by[family])]
    noise = [point["deviation"] / point["error"] for point in points if point["seeds"] > 1]
    return {
        "points": points,
        "resamples": RESAMPLES,
        "noise": float(np.sqrt(np.square(noise).mean())) if noise else None,
        "fits": [{"family": family, **_fitted(by[family], preset)} for family in families],
        "predictions": [{"family": family, **_predicted(by[family], preset)} for family in families],
        "claims": list(_claims(by)),
        "correlations": list(_correlations(rows)),
    }


def _key(row: Row) -> tuple[int, int, int]:
    return row.cell.size, row.cell.images, row.cell.steps


def _points(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    for _, group in groupby(sorted(rows, key=_key), _key):
        some = list(group)
        first, accuracies = some[0], np.array([row.accuracy for row in some])
        resamples = list(draws(np.array([row.cell.seed for row in some])))
        means = [float(accuracies @ weights / weights.sum()) for weights, _ in resamples]
        shots = _shots(first.metrics)
        kept = {name: getattr(first.cell, name) for name in ("family", "size", "images", "steps")}
        yield kept | {
            "parameters": first.parameters,
            "examples": first.examples,
            "flops": first.flops,
            "seconds": float(np.mean([row.seconds for row in some])),
            "seeds": len(some),
            "accuracy": float(accuracies.mean()),
            "interval": list(interval(means, [often for _, often in resamples])) if len(some) > 1 else None,
            "error": float(np.mean([row.error for row in some])),
            "deviation": float(np.std([row.error for row in some], ddof=1)) if len(some) > 1 else None,
            "fewshot": {name: float(np.mean([row.metrics[name] for row in some])) for name in shots},
        }


def _fits(rows: Sequence[Row], preset: Preset) -> tuple[Law, list[tuple[Law, int]]]:
    """The law, and those of the resamples that have runs enough. TooFew where there are too few at all."""
    x = np.array([row.place(preset) for row in rows], np.float64).reshape(len(rows), 2 if preset == "compute" else 1)
    y, seeds = np.array([row.error for row in rows]), np.array([row.cell.seed for row in rows])
    law, others = fit(x, y), list[tuple[Law, int]]()
    for weights, often in draws(seeds) if len(set(seeds.tolist())) > 1 else ():
        try:
            others.append((fit(x, y, weights, COARSE), often))
        except TooFew:  # some runs of a seed are missing
            continue
    return law, others


def _fitted(rows: Sequence[Row], preset: Preset) -> dict[str, Any]:
    try:
        law, others = _fits(rows, preset)
    except TooFew as error:
        return {"refused": str(error)}
    laws, often = [one for one, _ in others], [times for _, times in others]
    return {
        **asdict(law),
        "floor_interval": _bounds([one.floor for one in laws], often),
        "exponent_intervals": [_bounds([one.exponents[n] for one in laws], often) for n in range(len(law.exponents))],
    }


def _bounds(values: Sequence[float], often: Sequence[int]) -> list[float] | None:
    return list(interval(values, often)) if values else None


def _predicted(rows: Sequence[Row], preset: Preset) -> dict[str, Any]:
    """The error with all images, or of the largest model's longest run, by a fit without any run that has as many
    images or as large a model."""
    most = max(row.place(preset) for row in rows)
    try:
        law, others = _fits([row for row in rows if row.place(preset)[0] < most[0]], preset)
    except TooFew as error:
        return {"refused": str(error)}
    place, held = np.array([most], np.float64), [row for row in rows if row.place(preset) == most]
    actual, predicted = float(np.mean([row.error for row in held])), float(law.predict(place)[0])
    bounds = _bounds([float(one.predict(place)[0]) for one, _ in others], [often for _, often in others])
    return {"predicted": predicted, "interval": bounds, "actual": actual, "miss": predicted / actual - 1}


def _claims(by: Mapping[str, Sequence[Row]]) -> Iterator[dict[str, Any]]:
    """Whether a family gains on the ResNet from the cheapest runs, or those with the fewest images, to the others."""
    for family in by if BASELINE in by else ():
        if family == BASELINE:
            continue
        rows = [*by[family], *by[BASELINE]]
        keys = sorted(set(map(_key, by[family])) & set(map(_key, by[BASELINE])))
        if len(keys) < 2:
            continue
        resamples = [(np.ones(len(rows)), 0), *draws(np.array([row.cell.seed for row in rows]))]
        gaps = [
            (*(_gap(rows, weights, family, key) for key in (keys[0], keys[-1])), often) for weights, often in resamples
        ]
        (before, after, _), *pairs = gaps
        total = sum(often for first, last, often in pairs if not math.isnan(first + last))
        held = sum(often for first, last, often in pairs if last < first)
        yield {"family": family, "first": before, "last": after, "fraction": held / total if total else None}


def _gap(rows: Sequence[Row], weights: Numbers, family: str, key: tuple[int, int, int]) -> float:
    """By how much the ResNet's accuracy is higher; NaN where a resample lacks one of the two."""
    means = []
    for of in (BASELINE, family):
        some = [
            weight if row.cell.family == of and _key(row) == key else 0
            for row, weight in zip(rows, weights, strict=True)
        ]
        if not any(some):
            return math.nan
        means.append(float(np.average([row.accuracy for row in rows], weights=some)))
    return means[0] - means[1]


def _shots(names: Iterable[str]) -> list[str]:
    """Those of few-shot accuracies, by the number of shots."""
    found = (name for name in names if name.removeprefix(FEWSHOT).isdigit())
    return sorted(found, key=lambda name: int(name.removeprefix(FEWSHOT)))


def _correlations(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Of few-shot metrics with the final accuracy, over the runs that have both."""
    for name in _shots({name for row in rows for name in row.metrics}):
        some = [row for row in rows if name in row.metrics]
        x, y = np.array([row.metrics[name] for row in some]), np.array([row.accuracy for row in some])
        if len(some) < 3 or not x.std() or not y.std():
            continue
        seeds, means = np.array([row.cell.seed for row in some]), []
        for weights, often in draws(seeds):
            covariance = np.cov(x, y, aweights=weights)
            spread = math.sqrt(covariance[0, 0] * covariance[1, 1])
            means += [(covariance[0, 1] / spread, often)] if spread else []
        values, often = zip(*means, strict=True)
        bounds = list(interval(values, often)) if len(set(seeds.tolist())) > 1 else None
        yield {"metric": name, "runs": len(some), "correlation": float(np.corrcoef(x, y)[0, 1]), "interval": bounds}

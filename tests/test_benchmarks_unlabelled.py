"""The benchmark of pre-training: its intervals and paired differences. Nothing is trained."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

sys.path.append(str(Path(__file__).parents[1]))  # they are no part of the package

from benchmarks import unlabelled


@pytest.mark.parametrize("count", [2, 3, 5])
def test_an_interval_is_students(count):
    values = np.random.default_rng(count).normal(50, 3, count).tolist()
    low, high = t.interval(0.95, count - 1, np.mean(values), np.std(values, ddof=1) / count**0.5)
    assert unlabelled.interval(values) == f"({low:.2f} to {high:.2f}, {count} seeds)"


def test_differences_are_of_the_same_seed():
    pairs = {"mae: scratch": (0.40, 0.45, 0.50), "mae: features": (0.46, 0.52, 0.57)}
    records = [
        {"case": name, "seed": seed, "accuracy": value, "errors": {}}
        for name, values in pairs.items()
        for seed, value in enumerate(values)
    ]
    low, high = t.interval(0.95, 2, 20 / 3, np.std([6, 7, 7], ddof=1) / 3**0.5)
    assert f"mae: features - scratch: +6.67 points ({low:.2f} to {high:.2f}, 3 seeds)" in unlabelled.text(records)


def test_the_losses_of_runs_are_ranked_against_their_neighbours():
    rows = [
        {"case": str(i), "seed": 0, "knn": knn, "loss": 1 - knn, "invariance": i, "gaussian": -i, "errors": {}}
        for i, knn in enumerate((0.2, 0.3, 0.4, 0.5))
    ]
    said = unlabelled.text(rows)
    assert "-loss with knn over 4 runs: 1.00" in said
    assert "-invariance with knn over 4 runs: -1.00" in said

"""metrics.jsonl is read whatever became of it, and says how long a run took, interruptions or not."""

import json

import numpy as np
import pytest

from vitrail.log import read_history


def written(path, *lines):
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8", "replace"
    )
    return read_history(path)


def test_training_and_evaluations_are_series_by_step(tmp_path):
    history = written(
        tmp_path / "metrics.jsonl",
        {"step": 10, "loss": 2.5, "lr": 0.1},
        {"step": 20, "loss": 2, "accuracy": 0.5, "note": "words are no series"},
        {"step": 20, "evaluation": {"accuracy": 0.4, "loss": 3.0}},
        {"step": 25, "note": "x.jpg is damaged"},
        {"step": 30, "loss": float("nan")},
    )
    assert {name: steps.tolist() for name, (steps, _) in history.training.items()} == {
        "loss": [10, 20, 30], "lr": [10], "accuracy": [20]
    }  # fmt: skip
    assert history.training["loss"][1] == pytest.approx([2.5, 2, np.nan], nan_ok=True)
    assert {name: [axis.tolist() for axis in pair] for name, pair in history.evaluations.items()} == {
        "accuracy": [[20], [0.4]], "loss": [[20], [3.0]]
    }  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "",
        '{"step": 20, "lo',
        "null",
        "[]",
        "7",
        '"step"',
        "{}",
        '{"step": null}',
        '{"step": {}}',
        "\0\x1b",
        "[" * 100_000,
    ],
)
def test_what_is_no_record_is_left_out(tmp_path, line):
    history = written(tmp_path / "metrics.jsonl", {"step": 1, "loss": 1}, line, {"step": 3, "loss": 3})
    assert history.training["loss"][0].tolist() == [1, 3]


def test_without_a_file_there_is_no_history(tmp_path):
    for path in (tmp_path / "metrics.jsonl", tmp_path):
        history = read_history(path)
        assert (history.training, history.evaluations) == ({}, {})
        assert history.speed(64) == (0, 0, 0)


def test_time_and_speed_are_of_all_steps_and_weighted_by_time(tmp_path):
    history = written(
        tmp_path / "metrics.jsonl",
        {"step": 10, "images_per_second": 100, "data_wait": 0.5},  # 10 s
        {"step": 40, "images_per_second": 300, "data_wait": 0.2},  # 10 s
        {"step": 60, "images_per_second": 50, "data_wait": 0.0},  # 40 s
    )
    assert history.speed(100) == pytest.approx((60, 100, 7 / 60))


def test_a_history_without_waiting_has_a_speed(tmp_path):
    assert written(tmp_path / "m.jsonl", {"step": 5, "images_per_second": 10}).speed(4) == pytest.approx((2, 10, 0))

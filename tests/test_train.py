"""The Trainer: a run that was stopped, killed or crashed and then resumed is the same run, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from vitrail import run as runs
from vitrail import train
from vitrail.models import vit
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.recipes.demo import demo
from vitrail.train import Interrupted, Trainer


def small(**changes):
    """Twelve steps of a tiny model with dropout and stochastic depth, so that their draws are tested, too."""
    model = replace(demo().model, width=16, depth=2, heads=2, mlp_dim=16, dropout=0.1, drop_path=0.1)
    tiny = {"model": model, "batch": 8}
    often = {"duration": "12 steps", "log_every": 1, "checkpoint_every": "4 steps", "evaluate_every": "6 steps"}
    return replace(demo(), **{**tiny, **often, **changes})


@pytest.fixture
def quick(monkeypatch):
    """Evaluation on the first 100 images: what is evaluated is not what is tested here."""
    opened = train.open_source

    def shortened(data, split):
        source = opened(data, split)
        return source if split == "train" else replace(source, images=source.images[:100], labels=source.labels[:100])

    monkeypatch.setattr(train, "open_source", shortened)


def start(run, folder):
    runs.write(run, folder)
    return Trainer(run, folder)


def history(folder):
    """What was logged, without what depends on the clock."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("images_per_second", "data_wait")} for r in records]


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def assert_same_run(a, b):
    assert history(a) == history(b)
    for name, tensor in weights(a).items():
        assert torch.equal(tensor, weights(b)[name]), name


def crash_at(trainer, step):
    """Lets the trainer die before `step`, as if the process had been killed."""
    inner = trainer._step

    def dies(number, batch):
        if number == step:
            raise MemoryError
        return inner(number, batch)

    trainer._step = dies
    with pytest.raises(MemoryError):
        trainer.fit()


@pytest.mark.parametrize("step", [3, 4, 7, 11])
def test_a_crashed_run_resumes_bit_for_bit(tmp_path, quick, step):
    start(small(), tmp_path / "whole").fit()
    crash_at(start(small(), tmp_path / "cut"), step)
    again = Trainer(runs.read(tmp_path / "cut"), tmp_path / "cut")
    assert again.done == step - step % 4
    again.fit()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_two_crashes_are_like_none(tmp_path, quick):
    start(small(), tmp_path / "whole").fit()
    crash_at(start(small(), tmp_path / "cut"), 5)
    crash_at(Trainer(runs.read(tmp_path / "cut"), tmp_path / "cut"), 9)
    Trainer(runs.read(tmp_path / "cut"), tmp_path / "cut").fit()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_resumes_bit_for_bit(tmp_path, quick, number):
    start(small(), tmp_path / "whole").fit()
    trainer = start(small(), tmp_path / "cut")
    inner = trainer._step

    def interrupted(step, batch):
        if step == 5:
            os.kill(os.getpid(), number)
        return inner(step, batch)

    trainer._step = interrupted
    with pytest.raises(Interrupted, match="stopped after step 6 of 12"):
        trainer.fit()
    again = Trainer(runs.read(tmp_path / "cut"), tmp_path / "cut")
    assert again.done == 6  # between two regular checkpoints
    again.fit()
    ours, theirs = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_stops_at_once():
    def press_twice():
        with train.stoppable() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.wait(5)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        press_twice()


def test_outside_the_main_thread_signals_are_left_alone():
    found = []

    def ask():
        with train.stoppable() as stop:
            found.append((stop.is_set(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [(False, signal.default_int_handler)]


@pytest.mark.slow
def test_a_killed_demo_resumes_with_the_same_losses(tmp_path):
    """The command itself, killed with SIGKILL after its first checkpoint."""
    command = [sys.executable, "-m", "vitrail"]
    options = ["--duration", "230 steps", "--seed", "1", "--out"]
    subprocess.run([*command, "demo", *options, tmp_path / "whole"], check=True, capture_output=True)
    with subprocess.Popen([*command, "demo", *options, tmp_path / "cut"], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "cut" / "checkpoints" / "step-200").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    assert not (tmp_path / "cut" / "model").exists(), "the run ended before it could be killed"
    subprocess.run([*command, "resume", tmp_path / "cut"], check=True, capture_output=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_resumes_to_the_same_result(tmp_path, quick):
    result = start(small(), tmp_path / "run").fit()
    before = history(tmp_path / "run")
    assert Trainer(runs.read(tmp_path / "run"), tmp_path / "run").fit() == result
    assert history(tmp_path / "run") == before


@pytest.mark.parametrize("call", [1, 2])
def test_a_crash_between_checkpoint_and_evaluation_loses_neither(tmp_path, quick, monkeypatch, call):
    often = {"checkpoint_every": "6 steps", "evaluate_every": "6 steps"}
    start(small(**often), tmp_path / "whole").fit()
    trainer, calls = start(small(**often), tmp_path / "cut"), []
    inner = trainer._evaluate

    def dies(log):
        calls.append(1)
        if len(calls) == call:
            raise MemoryError
        return inner(log)

    monkeypatch.setattr(trainer, "_evaluate", dies)
    with pytest.raises(MemoryError):
        trainer.fit()
    again = Trainer(runs.read(tmp_path / "cut"), tmp_path / "cut")
    assert again.done == 6 * call
    again.fit()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_the_seed_decides_the_run(tmp_path, quick):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        start(small(seed=seed), tmp_path / name).fit()
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert history(tmp_path / "a") != history(tmp_path / "c")


def test_the_learning_rate_follows_the_schedule(tmp_path, quick):
    run = small(optim=optim.Config(lr=0.1, schedule=Schedule("linear", warmup="4 steps")))
    start(run, tmp_path / "run").fit()
    rates = [record["lr"] for record in history(tmp_path / "run") if "lr" in record]
    expected = [0.1 * min(t / 4, (12 - t) / 8) for t in range(12)]
    assert rates == pytest.approx(expected)


def test_training_lowers_the_loss(tmp_path, quick):
    model = replace(demo().model, width=32, depth=2, heads=2, mlp_dim=64)
    start(small(model=model, duration="150 steps", batch=32, log_every=10), tmp_path / "run").fit()
    losses = [record["loss"] for record in history(tmp_path / "run") if "loss" in record]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_a_loss_that_is_no_number_stops_the_run_and_is_not_saved(tmp_path, quick):
    trainer = start(small(), tmp_path / "run")
    inner = trainer._step

    def spoilt(step, batch):
        if step == 6:
            with torch.no_grad():
                trainer.task.model.head.weight.fill_(float("nan"))
        return inner(step, batch)

    trainer._step = spoilt
    with pytest.raises(ValueError, match=r"the loss is nan .* at step 7; the last good checkpoint is .*step-4"):
        trainer.fit()
    assert [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["step-4"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": vit.Config(channels=1, classes=12)}, "fashion has 10 classes, but the model's head has 12"),
        ({"device": "tpu"}, "the device 'tpu' is not available"),
        ({"optim": optim.Config(schedule=Schedule(warmup="50 steps"))}, "longer than the run of 12 steps"),
    ],
)
def test_what_does_not_agree_is_refused_before_training(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Trainer(small(**changes), tmp_path)

"""A run that was stopped, killed or crashed and then resumed is the same run, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load_file
from small_runs import EVERYTHING, assert_same_run, crash_at, history, small, start, weights

from vitrail import checkpoint, train
from vitrail import run as runs
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.train import Interrupted, Trainer


@pytest.mark.parametrize("step", [3, 4, 7, 11])
def test_a_crashed_run_resumes_bit_for_bit(tmp_path, quick, step):
    start(small(), tmp_path / "whole").fit()
    crash_at(start(small(), tmp_path / "cut"), step)
    again = Trainer(runs.read(tmp_path / "cut"), tmp_path / "cut")
    assert again.done == {3: 0, 4: 4, 7: 6, 11: 8}[step]  # 6 is the best so far
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

    def interrupted(step, parts):
        if step == 5:
            os.kill(os.getpid(), number)
        return inner(step, parts)

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


@pytest.mark.parametrize(("method", "done"), [("_evaluate", 6), ("_finish", 12)])
def test_a_crash_between_checkpoint_and_evaluation_loses_neither(tmp_path, quick, monkeypatch, method, done):
    often = {"checkpoint_every": "6 steps", "evaluate_every": "6 steps"}
    start(small(**often), tmp_path / "whole").fit()
    trainer = start(small(**often), tmp_path / "cut")

    def dies(log):
        raise MemoryError

    monkeypatch.setattr(trainer, method, dies)
    with pytest.raises(MemoryError):
        trainer.fit()
    again = Trainer(runs.read(tmp_path / "cut"), tmp_path / "cut")
    assert again.done == done
    again.fit()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_everything_resumes_bit_for_bit(tmp_path, quick, name):
    config = optim.Config(name, lr=0.01, weight_decay=0.0, schedule=Schedule("cosine", warmup="25%"), layer_decay=0.8)
    run = small(optim=config, **EVERYTHING)
    start(run, tmp_path / "whole").fit()
    crash_at(start(run, tmp_path / "cut"), 7)
    Trainer(runs.read(tmp_path / "cut"), tmp_path / "cut").fit()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    last = [load_file(tmp_path / n / "checkpoints" / "step-12" / "tensors.safetensors") for n in ("whole", "cut")]
    assert last[0].keys() == last[1].keys()
    assert {key.split("/")[0] for key in last[0]} == {"task", "optimizer", "ema"}
    assert all(torch.equal(last[0][key], last[1][key]) for key in last[0])


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_that_load_change_nothing(tmp_path, quick, workers):
    start(small(**EVERYTHING), tmp_path / "threads").fit()
    start(small(**EVERYTHING, workers=workers), tmp_path / "processes").fit()
    assert_same_run(tmp_path / "threads", tmp_path / "processes")


GO_ON = """
import sys
from pathlib import Path
from vitrail import run as runs
from vitrail.train import Trainer
folder = Path(sys.argv[1])
Trainer(runs.read(folder), folder).fit()
"""


def process(folder, *, code=("-c", GO_ON), **how):
    return subprocess.Popen([sys.executable, *code, str(folder)], **{"stderr": subprocess.DEVNULL, **how})


def steps_logged(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_of_the_whole_group_of_processes_saves_the_step(tmp_path, number):
    """What `timeout`, a scheduler's cancel and a container's stop do: two processes that load images get it, too."""
    run = small(duration="400 steps", checkpoint_every="400 steps", evaluate_every="400 steps", workers=2, **EVERYTHING)
    for name in ("whole", "cut"):
        runs.write(run, tmp_path / name)
    assert process(tmp_path / "whole").wait() == 0
    command = {"code": ("-m", "vitrail", "resume"), "start_new_session": True}
    with process(tmp_path / "cut", **command, stderr=subprocess.PIPE, text=True) as running:
        while steps_logged(tmp_path / "cut") < 20 and running.poll() is None:
            time.sleep(0.01)
        os.killpg(running.pid, number)
        said = running.communicate(timeout=60)[1]
    assert running.returncode == 130, said
    assert "Traceback" not in said
    assert f"vitrail resume {tmp_path / 'cut'}" in said.splitlines()[-1]
    done = int(checkpoint.newest(tmp_path / "cut" / "checkpoints").name.removeprefix("step-"))
    assert 20 <= done < 400
    assert steps_logged(tmp_path / "cut") == done
    assert process(tmp_path / "cut").wait() == 0
    ours, theirs = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [20])
def test_twenty_kills_at_random_moments_change_no_bit(tmp_path, kills):
    """SIGKILL, of which many fall into a checkpoint's writing: there is one every second step, larger than the step."""
    run = small(duration="600 steps", log_every=1, checkpoint_every="2 steps", evaluate_every="300 steps", **EVERYTHING)
    for name in ("whole", "cut"):
        runs.write(run, tmp_path / name)
    assert process(tmp_path / "whole").wait() == 0
    chance, done, halves = random.Random(0), 0, 0
    for _ in range(kills):
        before = steps_logged(tmp_path / "cut")
        with process(tmp_path / "cut") as running:
            while steps_logged(tmp_path / "cut") <= before and running.poll() is None:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.3))
            running.kill()
        left = tmp_path / "cut" / "checkpoints"
        halves += bool(list(left.glob(".step-*")))
        for path in checkpoint.checkpoints(left):  # every one that is seen is whole
            load_file(path / "tensors.safetensors")
            assert json.loads((path / "state.json").read_text()) == {"step": int(path.name.removeprefix("step-"))}
        now = int(checkpoint.newest(left).name.removeprefix("step-")) if checkpoint.newest(left) else 0
        assert now >= done
        done = now
    assert 0 < done < 600, "the run ended before it was killed often enough"
    assert process(tmp_path / "cut").wait() == 0
    print(f"{kills} kills, {halves} of them while a checkpoint was being written or deleted, the last at step {done}")
    assert halves
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    last = [
        load_file(tmp_path / name / "checkpoints" / "step-600" / "tensors.safetensors") for name in ("whole", "cut")
    ]
    assert last[0].keys() == last[1].keys()
    assert all(torch.equal(last[0][key], last[1][key]) for key in last[0])

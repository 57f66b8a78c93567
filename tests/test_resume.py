"""A run that was stopped, killed or crashed and then resumed is the same run, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from safetensors.torch import load_file
from small_runs import EVERYTHING, again, assert_same_end, assert_same_run, crash_at, goes_on, resumes, small, start

from vitrail import checkpoint, train
from vitrail import run as runs
from vitrail.data.stream import Unread
from vitrail.evaluate import Validation
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.train import Interrupted


@pytest.mark.parametrize(("step", "done"), [(3, 0), (4, 4), (7, 6), (11, 8)])  # 6 is the best so far
def test_a_crashed_run_resumes_bit_for_bit(tmp_path, quick, step, done):
    start(small(), tmp_path / "whole").fit()
    crash_at(start(small(), tmp_path / "cut"), step)
    goes_on(tmp_path, done)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_everything_resumes_bit_for_bit(tmp_path, quick, name):
    config = optim.Config(name, lr=0.01, weight_decay=0.0, schedule=Schedule("cosine", warmup="25%"), layer_decay=0.8)
    resumes(small(optim=config, **EVERYTHING), tmp_path)
    assert_same_end(tmp_path / "whole", tmp_path / "cut", 12)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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
    trainer = again(tmp_path / "cut")
    assert trainer.done == 6  # between two regular checkpoints
    trainer.fit()
    assert_same_end(tmp_path / "whole", tmp_path / "cut", 12)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("step", [6, 12])  # 12 is the last, which has been saved
def test_a_stop_or_a_fault_during_an_evaluation_saves_what_is_done(tmp_path, quick, monkeypatch, step):
    start(small(), tmp_path / "whole").fit()
    real = Validation.batches

    def stops(data):
        if trainer.done == step:
            os.kill(os.getpid(), signal.SIGTERM)
        yield from real(data)

    def fails(data):
        yield from real(data)
        if trainer.done == step:
            raise Unread("a.jpg is cut short.")

    for fault, error in ((stops, Interrupted), (fails, Unread)):
        trainer = start(small(), tmp_path / fault.__name__)
        with monkeypatch.context() as patched:
            patched.setattr(Validation, "batches", fault)
            with pytest.raises(error):
                trainer.fit()
        trainer = again(tmp_path / fault.__name__)
        assert trainer.done == step
        trainer.fit()
        assert_same_end(tmp_path / "whole", tmp_path / fault.__name__, 12)


def test_under_nohup_a_terminal_may_close():
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with train.stoppable() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.wait(0.1)
    finally:
        signal.signal(signal.SIGHUP, earlier)


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
    def ask():
        with train.stoppable() as stop:
            return stop.is_set(), signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor() as pool:
        assert pool.submit(ask).result() == (False, signal.default_int_handler)


@pytest.mark.parametrize(("method", "done"), [("_evaluate", 6), ("_finish", 12)])
def test_a_crash_between_checkpoint_and_evaluation_loses_neither(tmp_path, quick, monkeypatch, method, done):
    run = small(checkpoint_every="6 steps", evaluate_every="6 steps")
    result = start(run, tmp_path / "whole").fit()
    trainer = start(run, tmp_path / "cut")
    monkeypatch.setattr(trainer, method, lambda log: [].pop())
    with pytest.raises(IndexError):
        trainer.fit()
    goes_on(tmp_path, done)
    assert goes_on(tmp_path, 12).fit() == result  # though it has ended


def test_processes_that_load_change_nothing(tmp_path, quick):
    start(small(**EVERYTHING), tmp_path / "threads").fit()
    start(small(**EVERYTHING, workers=3), tmp_path / "processes").fit()
    assert_same_run(tmp_path / "threads", tmp_path / "processes")


def process(folder, **how):
    command = [sys.executable, "-m", "vitrail", "resume", str(folder)]
    return subprocess.Popen(command, **{"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **how})


def steps_logged(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_of_the_whole_group_of_processes_saves_the_step(tmp_path, number):
    """What `timeout`, a scheduler's cancel and a container's stop do: two processes that load images get it, too."""
    run = small(duration="400 steps", checkpoint_every="400 steps", evaluate_every="400 steps", workers=2, **EVERYTHING)
    for name in ("whole", "cut"):
        runs.write(run, tmp_path / name)
    assert process(tmp_path / "whole").wait() == 0
    with process(tmp_path / "cut", start_new_session=True, stderr=subprocess.PIPE, text=True) as running:
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
    assert_same_end(tmp_path / "whole", tmp_path / "cut", 400)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit(tmp_path):
    """SIGKILL, of which many fall into a checkpoint's writing: there is one every second step, larger than the step."""
    run = small(duration="600 steps", log_every=1, checkpoint_every="2 steps", evaluate_every="300 steps", **EVERYTHING)
    for name in ("whole", "cut"):
        runs.write(run, tmp_path / name)
    assert process(tmp_path / "whole").wait() == 0
    chance, done, halves = random.Random(0), 0, 0
    for _ in range(20):
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
            assert json.loads((path / "state.json").read_text())["step"] == int(path.name.removeprefix("step-"))
        now = int(checkpoint.newest(left).name.removeprefix("step-")) if checkpoint.newest(left) else 0
        assert now >= done
        done = now
    assert 0 < done < 600, "the run ended before it was killed often enough"
    assert process(tmp_path / "cut").wait() == 0
    assert halves, "no kill fell into the writing or deleting of a checkpoint"
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert_same_end(tmp_path / "whole", tmp_path / "cut", 600)

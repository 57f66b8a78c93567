"""Work done ahead: in order, no further than asked, ended with whoever asks for it, deaf to what is for the parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
import torch
from torch.utils.data import Dataset

from vitrail.batch import Batch
from vitrail.data.stream import Expecting, Loaded, Lost, Unread, prefetch, stream


class Numbers(Dataset):
    """Batches of one number; those of `missing` have no image, and `broken` cannot be made."""

    def __init__(self, missing=(), broken=None, fault=None):
        self.made, self.missing, self.broken, self.fault = [], missing, broken, fault

    def __getitem__(self, key):
        self.made.append(key)
        time.sleep(1e-4 * (key % 3))  # so that threads and processes end out of order
        if key == self.broken:
            raise self.fault or ValueError(f"{key} cannot be read.")
        batch = None if key in self.missing else Batch(number=torch.tensor([key]))
        return Loaded(batch, (f"{key} is odd",) * (key % 2))


def nothing_runs():
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    return not multiprocessing.active_children() and not threads


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_and_problems_with_them(workers):
    told = []
    found = stream(Numbers(missing=(2, 5)), range(9), workers, skipped=told.append)
    assert [batch["number"].item() for batch in found] == [0, 1, 3, 4, 6, 7, 8]
    assert told == ["1 is odd", "3 is odd", "5 is odd", "7 is odd"]
    assert list(stream(Numbers(), range(0), workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_at_its_batch_as_one_sentence_and_ends_all(workers):
    batches = stream(Numbers(broken=3), range(100), workers)
    assert [next(batches)["number"].item() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"^3 cannot be read\.$"):
        next(batches)
    assert nothing_runs()


def test_a_process_that_dies_is_named_and_never_cuts_into_what_is_done_meanwhile():
    handler = signal.getsignal(signal.SIGCHLD)
    batches = stream(Numbers(), range(10**5), 2)
    next(batches)
    dies = multiprocessing.active_children()[0]
    os.kill(dies.pid, signal.SIGKILL)
    dies.join()
    time.sleep(0.1)  # where torch's handler would raise
    with pytest.raises(Lost, match=rf"process {dies.pid}, .* killed by SIGKILL, .* memory runs out"):
        list(batches)
    assert nothing_runs()
    assert signal.getsignal(signal.SIGCHLD) is handler


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("fault", "sentence"), [
    (OSError(5, "Input/output error", "a.jpg"), r"a\.jpg cannot be read \(Input/output error\)"),
    (MemoryError(), "memory does not suffice"), (Unread("b.jpg is cut short."), r"b\.jpg is cut short"),
])  # fmt: skip
def test_what_fails_while_an_image_is_read_is_one_sentence(workers, fault, sentence):
    with pytest.raises(type(fault) if isinstance(fault, Unread) else ValueError, match=sentence):
        next(stream(Numbers(broken=0, fault=fault), range(3), workers))


@pytest.mark.parametrize(("workers", "taken"), [(0, 0), (0, 1), (0, 3), (2, 1)])
def test_leaving_midway_ends_threads_and_processes_and_makes_no_more(workers, taken):
    made = Numbers()
    batches = stream(made, range(5000), workers)
    assert [next(batches)["number"].item() for _ in range(taken)] == list(range(taken))
    batches.close()
    assert nothing_runs()
    assert len(made.made) <= taken + 2


def test_things_are_prepared_ahead_but_no_further_than_asked():
    made = []
    items = prefetch(lambda key: made.append(key) or key, range(5000), 3)
    assert next(items) == 0
    time.sleep(0.2)
    assert made == [0, 1, 2, 3]
    items.close()


# Streams until it is asked to stop; a batch is larger than a pipe, so that a worker may wait until it is read.
PROGRAM = """
import os, signal, sys, time
import numpy as np, torch
from vitrail.batch import Batch
from vitrail.data.stream import Loaded, stream

class Slow(torch.utils.data.Dataset):
    def __getitem__(self, key):
        time.sleep(0.01)
        return Loaded(Batch(images=torch.zeros(1), large=[np.zeros(10**5)]))

def ask(number, frame):
    asked.append(number)
    if os.getpid() != parent:
        raise KeyboardInterrupt

asked, parent = [], os.getpid()
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, ask)
print("begins", flush=True)
for place, batch in enumerate(stream(Slow(), range(10**6), 2)):
    if place == 20:
        print("runs", flush=True)
    if asked and place > 100:
        break
sys.stdin.readline()
"""


@pytest.fixture
def program():
    """In a process group of its own. Its output ends when the last process that may write to it ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], **pipes, start_new_session=True)
    assert process.stdout.readline() == "begins\n"
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stop_that_the_whole_group_gets_is_for_the_parent_alone(program, number):
    """From before there are workers until they work."""
    for _ in range(100):
        os.killpg(program.pid, number)
        time.sleep(0.01)
    out, errors = program.communicate("\n", timeout=30)
    assert (program.returncode, out, errors) == (0, "runs\n", "")


ORPHAN = """
import multiprocessing, os, signal, time
from vitrail.data.stream import begin

def late(parent):
    while os.getppid() == parent:
        time.sleep(0.01)
    print("alone", flush=True)
    begin(0)
    time.sleep(600)

multiprocessing.get_context("fork").Process(target=late, args=(os.getpid(),)).start()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="of what is forked")
def test_a_worker_ends_whose_parent_was_killed_before_it_began():
    """Its output ends when the last process that may write to it ends."""
    found = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (-signal.SIGKILL, "alone\n")


@pytest.mark.slow
def test_workers_end_within_20_seconds_of_a_parent_that_is_killed(program):
    """Also one that waits until its batch is read, which torch's own watch leaves for ever."""
    assert program.stdout.readline() == "runs\n"
    time.sleep(0.5)
    os.kill(program.pid, signal.SIGKILL)
    program.communicate(timeout=20)
    assert program.returncode == -signal.SIGKILL


class Late(Expecting):
    """Its second batch is made by one thread while the other begins to expect it."""

    ahead = 1

    def __init__(self):
        self.made, self.known = threading.Event(), set()

    def __getitem__(self, key):
        self.known.discard(key)
        if key == 1:
            self.made.set()
        return Loaded(Batch(keys=torch.tensor([key])))

    def expect(self, number):
        if number == 1:
            assert self.made.wait(20)
        self.known.add(number)

    def forget(self, number):
        self.known.discard(number)


def test_what_was_made_before_it_was_expected_is_forgotten_at_the_end():
    made = Late()
    assert sorted(int(batch["keys"]) for batch in stream(made, range(3), 0)) == [0, 1, 2]
    assert made.known == set()

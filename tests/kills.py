"""Kills a run at random moments, again and again, each time to go on with another number of processes: one hash.

    python tests/kills.py 100
    python tests/kills.py 20 --steps 100 --seed 1

A run with --exact is ended by SIGKILL of all its processes, now while they start, now while they train or save, and
the same command goes on with 1 to 4 of them, the weights whole, divided or divided in groups. What an unbroken run of
one process has in the end, it must have: weights, optimiser and average, bit for bit.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from processes import alone, bits, place, started, workers

LAYOUTS = ((1, "1"), (2, "1"), (2, "0"), (3, "1"), (3, "0"), (4, "1"), (4, "0"), (4, "2"))  # processes, --shard
AFTER = 6.0  # seconds of training, at most, before a kill
FIRST = 10.0  # seconds to the first step, before they are known


def lines(run: Path) -> int:
    """Of its log: it grows once a life has its first step."""
    log = run / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def life(
    here: Path, draw: random.Random, start: float, more: list[str], spared: bool
) -> tuple[int, str, float, int | None]:
    """(processes, --shard, seconds to the first step or `start` where it had none, status or None where it was
    killed). spared: whether it is not to be killed."""
    world, shard = draw.choice(LAYOUTS)
    before, began, first = lines(here / "cut"), time.monotonic(), None
    late, wait = draw.random() < 0.7, draw.random()  # in training; else at any moment of the start
    process = started(here, world, "cut", "--shard", shard, *more)
    while process.poll() is None:
        now = time.monotonic() - began
        if first is None and lines(here / "cut") > before:
            first = now
        since = (now + 1 if first is None else first + AFTER * wait) if late else start * wait
        if now >= since and not spared:
            for pid in (process.pid, *workers(here, "cut")):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate()
            return world, shard, first or start, None
        time.sleep(0.02)
    said = process.communicate()[1]
    if process.returncode:
        sys.exit(f"it ended with status {process.returncode} on {world} processes, --shard {shard}:\n{said[-2000:]}")
    return world, shard, first or start, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kills", type=int)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, killed, start = random.Random(options.seed), 0, FIRST
    with tempfile.TemporaryDirectory() as folder:
        here = place(Path(folder))
        more = ["--exact", "True", "--duration", f"{options.steps} steps", "--evaluate-every", "100%"]
        more += ["--checkpoint-every", "5 steps", "--log-every", "1"]
        alone(here, "whole", *more)
        expected, status = bits(here, "whole", options.steps), None
        print(f"unbroken, one process, {options.steps} steps: {expected[:12]}", flush=True)
        while status is None:
            world, shard, start, status = life(here, draw, start, more, killed == options.kills)
            killed += status is None
            print(f"{killed}: {world} processes, --shard {shard}, {lines(here / 'cut')} lines", flush=True)
        found = bits(here, "cut", options.steps)
        print(f"after {killed} kills: {found[:12]}, equal {found == expected}")
        sys.exit(found != expected or killed < options.kills)


if __name__ == "__main__":
    main()

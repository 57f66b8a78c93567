"""How one model step is measured: interleaved rounds in fresh processes for speed, one process each for memory.

    for _ in speeds(options, records, [Setting("S/16@224", "train", "eager", 8)]): ...

options: libraries, rounds, repeats, until, burst (seconds of a turn), device, threads, timeout, keep_freed, cache. A
library written "timm:compiled" has a mode of its own.
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.peers import Case
from benchmarks.pool import KEEP_FREED, PINNED, Worker, WorkerError, environment
from benchmarks.rounds import Record, deadline, fail, new, say, take_turns


@dataclass(frozen=True)
class Setting:
    """One case of the result: the same for every library."""

    case: str
    pass_name: str
    mode: str
    batch: int

    def __str__(self) -> str:
        return f"{self.case} {self.pass_name} {self.mode}, batch {self.batch}"

    def record(self, options: Namespace) -> Record:
        """A record without rounds."""
        return new(str(self), options.libraries[0], matrix_gflops=[])

    def request(self, library: str, options: Namespace) -> dict[str, Any]:
        """What a worker needs to build it."""
        name, _, mode = library.partition(":")
        named = {"case": self.case, "pass": self.pass_name, "mode": mode or self.mode, "batch": self.batch}
        return named | {"library": name, "device": options.device, "threads": options.threads}


def batch_of(case: Case, pass_name: str, device: str) -> int:
    """A batch large enough for the rate of a larger one, and small enough for several rounds of four libraries."""
    if device == "cuda":
        return 64 if case.resolution > 224 or pass_name == "train" else 256
    if case.gflop < 1:
        return 128  # as such models are trained; fewer would time the calls, not the products
    full = 16 if case.gflop < 20 else 8 if case.gflop < 60 else 4
    return full // 2 if pass_name == "train" else full


@contextmanager
def matrix(options: Namespace) -> Iterator[Callable[[], float]]:
    """A process for matrix products only; yields a function that measures their GFLOP/s."""
    with Worker("matrix product", environment(KEEP_FREED if options.keep_freed else {})) as worker:
        worker.ask("matrix", options.timeout, device=options.device, threads=options.threads)
        yield lambda: worker.ask("rate", options.timeout)["gflops"]


def speeds(options: Namespace, records: list[Record], rows: list[Setting]) -> Iterator[None]:
    """Measures all settings, then all of them again in fresh processes, options.repeats times; yields after each."""
    found = [row.record(options) for row in rows]
    records += found
    with matrix(options) as rate:
        for repeat in range(options.repeats):
            for place, (row, record) in enumerate(zip(rows, found, strict=True)):
                waiting = (options.repeats - repeat) * len(rows) - place
                speed(record, row, options, rate, deadline(options.until, waiting))
                yield


def speed(record: Record, setting: Setting, options: Namespace, rate: Callable[[], float], until: float) -> None:
    """Measures one setting in fresh processes, which live side by side: each library's seconds per image, by round."""
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for library in options.libraries:
            if library in record["errors"]:
                continue
            say(f"{setting}: building {library}")
            variables = environment(KEEP_FREED if options.keep_freed else {}, options.cache / library)
            worker = stack.enter_context(Worker(library, variables))
            try:
                record["libraries"].setdefault(library, {}).update(prepare(worker, setting, options))
                workers[library] = worker
            except WorkerError as error:
                fail(record, library, error)
        if not workers:
            return
        steps = max(1, round(options.burst / min(record["libraries"][name]["step_seconds"] for name in workers)))
        turns = {
            name: partial(burst, worker, steps, setting.batch, options.timeout) for name, worker in workers.items()
        }
        take_turns(record, turns, options.rounds, until, lambda: record["matrix_gflops"].append(rate()))


def prepare(worker: Worker, setting: Setting, options: Namespace) -> Record:
    """Builds, counts, compiles, warms up; the last step's time decides how many make a burst."""
    worker.ask("build", options.timeout, **setting.request(worker.label, options))
    flops = worker.ask("flops", options.timeout)["flops"]
    first, second = (worker.ask("steps", options.timeout, count=1)["seconds"][0] for _ in range(2))
    times = 3 if setting.pass_name == "train" else 1  # the backward pass is two forward passes
    return {"flops": flops * times, "first_step_seconds": first, "step_seconds": second}


def burst(worker: Worker, steps: int, batch: int, timeout: float) -> dict[str, Any]:
    """One library's turn."""
    answer = worker.ask("steps", timeout, count=steps)
    return answer | {"seconds": statistics.median(answer["seconds"]) / batch}


def memory(setting: Setting, options: Namespace) -> Record:
    """Peak memory of one setting, each library in a fresh process with the same allocator threshold."""
    record = setting.record(options)
    for library in options.libraries:
        say(f"{setting}: memory of {library}")
        with Worker(library, environment(PINNED)) as worker:
            try:
                worker.ask("build", options.timeout, **setting.request(library, options))
                record["libraries"][library] = worker.ask("memory", options.timeout)
            except WorkerError as error:
                fail(record, library, error)
    return record

"""The measurements themselves: interleaved rounds for speed, one fresh process each for memory.

    from benchmarks.measure import speed, memory

A shared machine is never quiet for long. So the workers of one setting live side by side, one of them runs at a
time, in an order shuffled each round, and what counts is the ratio within a round. A round in which other programs
took more than DISTURBED of the machine is kept in the record but measured again, as long as patience lasts.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.machine import busy_seconds
from benchmarks.plan import (
    SHARE_OF_LIMIT,
    Options,
    Progress,
    Setting,
    expected_memory_seconds,
    expected_seconds,
)
from benchmarks.pool import KEEP_FREED, PINNED, Worker, WorkerError, environment

Record = dict[str, Any]

DISTURBED = 0.1


def matrix_worker(options: Options) -> Worker:
    """A process that knows nothing but the matrix product."""
    return Worker("matrix product", environment(KEEP_FREED if options.keep_freed else {}))


def open_matrix(worker: Worker, options: Options) -> float:
    """Prepare it and measure for the first time: GFLOP/s, the best of four, since estimates are for a quiet machine."""
    worker.ask("matrix", options.timeout, device=options.device, threads=options.threads)
    return max(worker.ask("rate", options.timeout)["gflops"] for _ in range(4))


def speed(
    setting: Setting, repeat: int, options: Options, matrix: Worker, cache: Path, progress: Progress, gflops: float
) -> Record:
    """One setting in fresh processes: every library's seconds per image in every round."""
    order = random.Random(f"{setting} {repeat}")
    expected = expected_seconds(setting, options, repeat, gflops)
    title = f"{setting}, run {repeat + 1} of {options.repeats}"
    record: Record = {**setting.record(), "repeat": repeat, "matrix_gflops": [], "foreign": []}
    record |= {"libraries": {}, "errors": {}}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for library in options.libraries:
            progress.say(f"{title}: building {library}")
            variables = environment(KEEP_FREED if options.keep_freed else {}, cache / library)
            worker = stack.enter_context(Worker(library, variables))
            try:
                record["libraries"][library] = prepare(worker, setting, options)
                workers[library] = worker
            except WorkerError as error:
                report(record, library, error)
            progress.advance((expected - rounds_part(setting, options, gflops)) / len(options.libraries))
        if not workers:
            return record
        quickest_step = min(record["libraries"][name]["step_seconds"] for name in workers)
        record["steps"] = max(1, round(options.burst / quickest_step))
        quiet = number = 0
        while workers and quiet < options.rounds and number < 2 * options.rounds:
            number += 1
            progress.say(f"{title}: round {number}, {quiet} of {options.rounds} done, {record['steps']} steps each")
            record["matrix_gflops"].append(matrix.ask("rate", options.timeout)["gflops"])
            foreign = one_round(workers, record, order.sample(sorted(workers), len(workers)), options)
            record["foreign"].append(foreign)
            quiet += foreign <= DISTURBED
            if number <= options.rounds:
                progress.advance(rounds_part(setting, options, gflops) / options.rounds)
    return record


def one_round(workers: dict[str, Worker], record: Record, order: list[str], options: Options) -> float:
    """Each library's turn; the answer is the largest share of the machine that other programs took in a turn."""
    foreign = [0.0]
    for library in order:
        try:
            result = record["libraries"][library]
            foreign.append(burst(workers[library], result, record["steps"], record["batch"], options))
        except WorkerError as error:
            report(record, library, error)
            del workers[library]
    return max(foreign)


def rounds_part(setting: Setting, options: Options, gflops: float) -> float:
    """The part of the estimate that the timed rounds are."""
    step = setting.gflop / (SHARE_OF_LIMIT * gflops)
    return len(options.libraries) * options.rounds * max(step, options.burst)


def prepare(worker: Worker, setting: Setting, options: Options) -> Record:
    """Build, count, compile, warm up; the last step's time tells how many make a burst."""
    worker.ask("build", options.timeout, **setting.request(worker.label, options))
    flops = worker.ask("flops", options.timeout)["flops"]
    first = worker.ask("steps", options.timeout, count=1)["seconds"][0]
    second = worker.ask("steps", options.timeout, count=1)["seconds"][0]
    return {
        "flops_per_image": flops * (3 if setting.pass_name == "train" else 1),
        "first_step_seconds": first,
        "step_seconds": second,
        "seconds_per_image": [],
        "faults_per_step": [],
        "processor_seconds_per_step": [],
    }


def burst(worker: Worker, result: Record, steps: int, batch: int, options: Options) -> float:
    """One library's turn in a round; the answer is the share of the machine that other programs took meanwhile."""
    start, busy = time.perf_counter(), busy_seconds()
    answer = worker.ask("steps", options.timeout, count=steps)
    wall, busy_after = time.perf_counter() - start, busy_seconds()
    result["seconds_per_image"].append(statistics.median(answer["seconds"]) / batch)
    result["faults_per_step"].append(round(answer["faults"]))
    result["processor_seconds_per_step"].append(answer["processor_seconds"])
    if busy is None or busy_after is None:
        return 0.0
    return max(0.0, busy_after - busy - steps * answer["processor_seconds"]) / (wall * (os.cpu_count() or 1))


def memory(setting: Setting, options: Options, progress: Progress, gflops: float) -> Record:
    """Peak memory of one setting, each library in a fresh process with the same allocator threshold."""
    record: Record = {**setting.record(), "libraries": {}, "errors": {}}
    for library in options.libraries:
        progress.say(f"{setting}, memory: {library}")
        with Worker(library, environment(PINNED)) as worker:
            try:
                worker.ask("build", options.timeout, **setting.request(library, options))
                record["libraries"][library] = worker.ask("memory", options.timeout)
            except WorkerError as error:
                report(record, library, error)
        progress.advance(expected_memory_seconds(setting, options, gflops) / len(options.libraries))
    return record


def report(record: Record, library: str, error: WorkerError) -> None:
    """Keep the reason, and drop the library from this setting: half a series would not be paired."""
    record["errors"][library] = str(error)
    record["libraries"].pop(library, None)

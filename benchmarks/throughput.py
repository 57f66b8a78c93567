"""Speed and memory of the same ViT in Vitrail, timm, transformers and torchvision, in one run.

    python -m benchmarks.throughput --json throughput.json
    python -m benchmarks.throughput --cases Ti/16@224 --modes eager --rounds 9 --repeats 3
    python -m benchmarks.throughput --libraries timm,torchvision --cases B/16@384 --passes train
    python -m benchmarks.throughput --plan           only say what would run and for how long

fp32 on a CPU, bf16 autocast on a GPU. Tables go to standard output, progress to standard error, and the raw rounds to
the JSON file, which is rewritten after each setting: an interrupted run keeps what it has. How: benchmarks/measure.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, write_json
from benchmarks.measure import matrix_worker, memory, open_matrix, speed
from benchmarks.plan import (
    Options,
    Progress,
    Setting,
    expected_memory_seconds,
    expected_seconds,
    memory_settings,
    minutes,
    settings,
)
from benchmarks.pool import KEEP_FREED, PINNED, WorkerError
from benchmarks.report import memory_summary, speed_summary, text


def names(value: str) -> tuple[str, ...]:
    """A list written with commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def parse(arguments: Sequence[str] | None) -> tuple[Options, Path | None, bool]:
    """Options, the JSON file, and whether only the plan is wanted."""
    default = Options()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--libraries", type=names, default=default.libraries, help="the first against the others")
    parser.add_argument("--cases", type=names, default=default.cases)
    parser.add_argument("--passes", type=names, default=default.passes, help="forward,train")
    parser.add_argument("--modes", type=names, default=default.modes, help="eager,compiled")
    parser.add_argument("--rounds", type=int, default=default.rounds, help="timed rounds in one run")
    parser.add_argument("--repeats", type=int, default=default.repeats, help="runs in fresh processes")
    parser.add_argument("--burst", type=float, default=default.burst, help="seconds of one library's turn")
    parser.add_argument("--forward-batch", type=int, help="instead of 128, 16, 16, 8 and 4 for the five cases")
    parser.add_argument("--train-batch", type=int, help="instead of 128, 8, 8, 4 and 2")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=default.threads)
    parser.add_argument("--timeout", type=float, default=default.timeout, help="seconds for a compilation or a burst")
    parser.add_argument("--default-allocator", action="store_true", help="do not keep freed memory mapped")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plan", action="store_true", help="print the settings and the estimate, measure nothing")
    given = vars(parser.parse_args(arguments))
    file, plan_only = given.pop("json"), given.pop("plan")
    given["keep_freed"] = not given.pop("default_allocator")
    given["speed"], given["memory"] = not given.pop("no_speed"), not given.pop("no_memory")
    if given["device"] == "auto":
        given["device"] = "cuda" if gpu() else "cpu"
    try:
        return Options(**given), file, plan_only
    except ValueError as error:
        parser.error(str(error))


def gpu() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def estimate(options: Options, gflops: float) -> float:
    """Seconds that the whole run should take."""
    timed = [(row, repeat) for repeat in range(options.repeats) for row in settings(options)]
    total = sum(expected_seconds(row, options, repeat, gflops) for row, repeat in timed) if options.speed else 0.0
    if options.memory:
        total += sum(expected_memory_seconds(row, options, gflops) for row in memory_settings(options))
    return total


def show_plan(options: Options, gflops: float) -> None:
    """The settings with their estimates."""
    rows: list[tuple[Setting, float]] = []
    if options.speed:
        rows = [
            (row, sum(expected_seconds(row, options, repeat, gflops) for repeat in range(options.repeats)))
            for row in settings(options)
        ]
    for row, seconds in rows:
        print(f"{row!s:32s} batch {row.batch:3d}  {minutes(seconds):>6s}")
    print(f"{'with memory' if options.memory else 'in all':32s} {minutes(estimate(options, gflops)):>16s}")


def run(options: Options, file: Path | None) -> dict[str, Any]:
    """Measure everything; an interruption returns what there is, marked as such."""
    document: dict[str, Any] = {
        "benchmark": "throughput",
        "machine": describe(),
        "settings": asdict(options) | {"allocator": {"speed": KEEP_FREED if options.keep_freed else {}}},
        "complete": False,
        "speed": [],
        "memory": [],
    }
    document["settings"]["allocator"]["memory"] = PINNED
    document["settings"]["libraries"] = list(options.libraries)
    try:
        measure_all(options, document, file)
        document["complete"] = True
    except KeyboardInterrupt:
        print("interrupted; the tables hold what was finished", file=sys.stderr)
    summarise(document, file)
    return document


def measure_all(options: Options, document: dict[str, Any], file: Path | None) -> None:
    """Memory first, since it is short; then all settings of the first run, of the second, ..."""
    with matrix_worker(options) as matrix, tempfile.TemporaryDirectory(prefix="vitrail-benchmark-") as cache:
        gflops = open_matrix(matrix, options)
        document["settings"]["matrix_gflops_at_start"] = gflops
        progress = Progress(estimate(options, gflops))
        progress.say(f"matrix products run at {gflops:.0f} GFLOP/s")
        for row in memory_settings(options) if options.memory else []:
            document["memory"].append(memory(row, options, progress, gflops))
            summarise(document, file)
        for repeat in range(options.repeats if options.speed else 0):
            for row in settings(options):
                record = speed(row, repeat, options, matrix, Path(cache), progress, gflops)
                document["speed"].append(record)
                summarise(document, file)
        progress.say("done")


def summarise(document: dict[str, Any], file: Path | None) -> None:
    """Add the figures of the tables and write the file."""
    libraries = document["settings"]["libraries"]
    document["summary"] = {
        "speed": speed_summary(document["speed"], libraries),
        "memory": memory_summary(document["memory"], libraries),
    }
    write_json(file, document)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 done but something failed, 2 bad input, 130 interrupted."""
    options, file, plan_only = parse(arguments)
    try:
        if plan_only:
            with matrix_worker(options) as matrix:
                show_plan(options, open_matrix(matrix, options))
            return 0
        document = run(options, file)
    except WorkerError as error:
        print(f"the matrix product could not be measured: {error}", file=sys.stderr)
        return 1
    print(text(document))
    failed = any(record["errors"] for record in [*document["speed"], *document["memory"]])
    return 130 if not document["complete"] else int(failed)


if __name__ == "__main__":
    sys.exit(main())

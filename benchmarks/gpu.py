"""How well training uses a GPU, in ten minutes: ours beside timm and transformers, in bf16, compiled; ours in fp8, too.

    python -m benchmarks.gpu --minutes 9 --json gpu.json                  all that fits into nine minutes
    python -m benchmarks.gpu --cases B/16@224 --libraries vitrail,timm    a part
    python -m benchmarks.gpu --tiny                                       whether it runs, on a CPU

A step is the Trainer's, on bytes that lie on the device: normalised there, forward, backward, clipped, AdamW fused; the
blocks are compiled one by one in every library, so that the minutes are not spent on compiling, and a library whose
model is best compiled whole is not shown at its best. The libraries of a case take turns in one process, with a matrix
product before each round: "of matrix rate" is of that, with 3 x the forward pass's FLOPs for a step, recomputing not
counted. "host" is the part of a step that Python needs to send it: near 100 %, the device waits for Python. "real" is
the whole Trainer on JPEGs, which simplejpeg decodes. "vitrail fsdp" is divided by fully_shard among one process: what
dividing costs by itself. What matters most comes first; what did not fit is named below.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import command, rounds
from benchmarks.command import known, names
from benchmarks.machine import usable_cores
from benchmarks.peers import Case
from benchmarks.pool import Worker, WorkerError, environment
from benchmarks.rounds import STEPS, Record, fail, left, new, say, steady, values
from benchmarks.throughput import gpu

REAL = "real"
LIBRARIES = ("vitrail", "timm", "vitrail fsdp", "vitrail fp8", "transformers")
# What matters most first. Images of a step at most.
CASES = {"B/16@224": 256, "L/16@224": 128, f"{REAL} S/16@224": 256, "H/14@224": 64, "S/16@224": 256}
ONLY = {"vitrail fp8": ("L/16@224", "H/14@224"), "vitrail fsdp": ("B/16@224",)}
TINY = {"Ti/16@32": 4, f"{REAL} Ti/16@32": 4}
FITS = 0.8  # of the memory that a batch may need
SPARE = 1.3  # what fragments, workspaces and the compiler add to the estimate


def libraries_of(case: str, options: Namespace) -> list[str]:
    """The libraries that a case has: fp8 only where the layers are large, and fully_shard once."""
    return [name for name in options.libraries if options.tiny or case in ONLY.get(name, (case,))]


def fitting(case: Case, most: int, models: int, free: int) -> int:
    """The largest batch, a power of two up to `most`, whose step fits beside the state of so many models."""
    from vitrail.models.cost import activations, parameters
    from vitrail.models.zoo import configure

    config = configure(f"ViT-{case.name}", image_size=case.resolution)
    state, image = 16 * parameters(config), activations(config, width=2)  # weights, gradients and AdamW's two averages
    batch = 1 << most.bit_length() - 1
    while batch > 1 and models * state + SPARE * image * batch > FITS * free:
        batch //= 2
    return batch


def flops(case: Case) -> float:
    """FLOPs of a step for one image: the backward pass is two forward passes."""
    from vitrail.models.cost import flops
    from vitrail.models.zoo import configure

    return 3.0 * flops(configure(f"ViT-{case.name}"), (case.resolution, case.resolution))


def steps(title: str, most: int, options: Namespace) -> Record:
    """Measures one case. A batch that does not fit after all is halved, once."""
    case, libraries = Case.parse(title), libraries_of(title, options)
    for attempt in (0, 1):
        with Worker(title, environment({}, options.cache), "benchmarks.gpu_worker") as worker:
            facts = worker.ask("device", left(options.until), device=options.device)
            # Before anything is compiled: it sets the number of threads, for which the compiler makes code anew.
            worker.ask("matrix", left(options.until), device=options.device, threads=usable_cores())
            batch = max(1, fitting(case, most, len(libraries), facts["free"]) >> attempt)
            record = new(title, "vitrail", batch=batch, device=facts, flops=flops(case), matrix_gflops=[], not_run=[])
            built = build(worker, libraries, record, options)
            if not attempt and "OutOfMemory" in record["errors"].get(libraries[0], ""):
                continue
            turns = {name: partial(turn, worker, name, record, options) for name in built}
            rounds.take_turns(record, turns, options.rounds, options.until, partial(rate, worker, record, options))
            return record
    raise AssertionError("the second attempt returns")


def build(worker: Worker, libraries: Sequence[str], record: Record, options: Namespace) -> list[str]:
    """Compiles and warms up one library after the other; returns those that are ready, and notes those without time."""
    request = {"case": record["case"], "batch": record["batch"], "device": options.device, "backend": options.backend}
    ready: list[str] = []
    for library in libraries:
        turns = options.rounds * options.burst * (1 + len(ready))
        if left(options.until) < options.least + turns:
            record["not_run"].append(library)
            continue
        say(f"{record['case']}: {library}, {left(options.until):.0f} s left")
        try:
            built = worker.ask("build", left(options.until) - turns, library=library, **request)
            record["libraries"][library] = built | {"flops": record["flops"]}
            ready.append(library)
        except WorkerError as error:
            fail(record, library, error)
            if worker.process.poll() is not None:  # its other models are gone as well
                return []
    return ready


def turn(worker: Worker, library: str, record: Record, options: Namespace) -> dict[str, Any]:
    """One library's turn: about `burst` seconds of steps."""
    count = max(1, round(options.burst / record["libraries"][library]["step_seconds"]))
    answer = worker.ask("steps", left(options.until), library=library, count=count)
    return answer | {"seconds": answer["seconds"] / record["batch"]}


def rate(worker: Worker, record: Record, options: Namespace) -> None:
    """Measures the matrix product's rate."""
    record["matrix_gflops"].append(worker.ask("rate", left(options.until))["gflops"])


def real(title: str, batch: int, options: Namespace) -> Record:
    """Measures the Trainer on drawn JPEGs; each is read once."""
    case = title.removeprefix(REAL).strip()
    record = new(title, "vitrail", batch=batch, matrix_gflops=[], workers=options.workers)
    # What the processes prepared while the model was compiled is used up before the clock starts.
    warm = max(2, options.real_steps // 3)
    request = {"case": case, "batch": batch, "steps": options.real_steps, "warm": warm, "workers": options.workers}
    request |= {"device": options.device, "images": (warm + options.real_steps) * batch}
    say(f"{title}, {left(options.until):.0f} s left")
    with Worker(title, environment({}, options.cache), "benchmarks.gpu_worker") as worker:
        worker.ask("matrix", left(options.until), device=options.device, threads=usable_cores())

        def trained() -> dict[str, Any]:
            answer = worker.ask("real", left(options.until), **request)
            return answer | {"seconds": steady(answer["steps"], batch, warm)}

        record["libraries"]["vitrail"] = {"flops": flops(Case.parse(case))}
        rounds.take_turns(record, {"vitrail": trained}, 1, time.perf_counter(), partial(rate, worker, record, options))
    return record


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Measures all cases in order, as long as there is time; yields after each."""
    sizes = TINY if options.tiny else CASES
    with tempfile.TemporaryDirectory(prefix="vitrail-benchmark-") as cache:
        options.cache = Path(cache)
        for title in options.cases:
            if left(options.until) < options.least:
                records.append(new(title, "vitrail", not_run=["all"]))
                continue
            try:
                records.append((real if title.startswith(REAL) else steps)(title, sizes[title], options))
            except WorkerError as error:  # before any library could begin
                records.append(new(title, "vitrail"))
                fail(records[-1], "the process", error)
            yield


def column(key: str, form: str) -> Any:
    """A column with the median of a contestant's numbers, or its only number."""

    def cell(record: Record, name: str) -> str:
        value = record["libraries"][name].get(key)
        value = statistics.median(values(record, name, key)) if isinstance(value, list) else value
        return "-" if value is None else f"{value:{form}}"

    return cell


def text(records: list[Record]) -> str:
    """The table, the device, and what there was no time for."""
    columns: dict[str, Any] = {"batch": lambda record, name: str(record["batch"]), "img/s": rounds.images_per_second}
    columns |= {"of matrix rate": rounds.of_limit, "peak GiB": column("peak_gib", ".1f")}
    columns |= {"compile s": column("compile_seconds", ".0f"), "graphs": column("graphs", "d")}
    columns |= {
        "later": column("recompiled", "g"),
        "host": column("host", ".0%"),
        "waiting": column("data_wait", ".1%"),
    }
    parts = [rounds.report(records, columns)]
    if device := next((record["device"] for record in records if "device" in record), None):
        parts.insert(0, ", ".join(f"{name}: {value}" for name, value in device.items() if name != "free"))
    if rates := [value for record in records for value in record.get("matrix_gflops", [])]:
        parts.append(f"Matrix products: {statistics.median(rates) / 1e3:.1f} TFLOP/s.")
    missing = [f"{record['case']}: {name}" for record in records for name in record.get("not_run", [])]
    return "\n\n".join(
        [*parts, *([f"Not run, because the time was too short: {'; '.join(missing)}."] if missing else [])]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py; 0 also where the time was too short for all."""
    parser = command.parser("gpu", __doc__)
    parser.set_defaults(minutes=9.0)
    parser.add_argument("--cases", type=names, help=f"with commas, of {', '.join(CASES)}")
    parser.add_argument("--libraries", type=names, default=LIBRARIES, help="with commas")
    parser.add_argument("--workers", type=int, default=min(16, usable_cores()), help="processes for real input")
    parser.add_argument("--tiny", action="store_true", help="a small model for a moment, on a CPU: whether all runs")
    options = parser.parse_args(arguments)
    sizes = TINY if options.tiny else CASES
    options.cases = options.cases or tuple(sizes)
    known(options.cases, sizes, parser)
    known(options.libraries, LIBRARIES, parser)
    if options.minutes <= 0 or options.workers < 0:
        parser.error("minutes must be more than 0, workers 0 or more")
    if not options.tiny and not gpu():
        parser.error("torch sees no GPU here; --tiny runs on a CPU")
    # least: seconds that must be left for another library to begin.
    how: dict[str, Any] = {"device": "cuda", "burst": 1.0, "backend": "inductor", "real_steps": 150, "least": 45.0}
    if options.tiny:
        how = {"device": "cpu", "burst": 0.05, "backend": "aot_eager", "real_steps": STEPS, "least": 5.0}
    vars(options).update(how)
    return command.run("gpu", options, measure, text)


if __name__ == "__main__":
    sys.exit(main())

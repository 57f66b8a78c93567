"""How well training uses a GPU, in ten minutes: ours beside timm and transformers, in bf16, compiled; ours in fp8.

    python -m benchmarks.gpu --minutes 9 --json gpu.json                  all that fits into nine minutes
    python -m benchmarks.gpu --cases B/16@224 --libraries vitrail,timm    a part
    python -m benchmarks.gpu --cifar10 cifar-10-batches-py --minutes 10   the accuracy from scratch in ten minutes
    python -m benchmarks.gpu --tiny                                       whether it runs, on a CPU

A step is the Trainer's, on bytes that lie on the device: normalised there, forward, backward, clipped, AdamW fused; the
blocks are compiled one by one in every library, so that the minutes are not spent on compiling, and a library whose
model is best compiled whole is not shown at its best. The libraries of a case take turns in one process, in shuffled
order, with a matrix product before each round: shares are of that rate, with 3 x the forward pass's FLOPs for a step,
recomputing not counted. "host" is the part of a step that Python needs to send it: near 100 %, the device waits for
Python. "real" is the whole Trainer on JPEGs. What matters most comes first; what did not fit is named below the table.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import gpu_cifar10
from benchmarks.machine import describe, headline, table, usable_cores, write_json
from benchmarks.measure import Record, report
from benchmarks.peers import Case
from benchmarks.pool import Worker, WorkerError, environment
from benchmarks.report import best_peer, quartiles, ratios, seconds_of
from benchmarks.throughput import gpu, names

REAL = "real"
LIBRARIES = ("vitrail", "vitrail fp8", "timm", "transformers")
# What matters most first; fp8 is for the large ones. Images of a step at most.
CASES = {"B/16@224": 256, "L/16@224": 128, f"{REAL} S/16@224": 256, "H/14@224": 64, "S/16@224": 256}
LOW = ("L/16@224", "H/14@224")
TINY = {"Ti/16@32": 4, f"{REAL} Ti/16@32": 4}
SHARE = 0.8  # of the memory that a batch may need
SPARE = 1.3  # what fragments, workspaces and the compiler add to the estimate


@dataclass(frozen=True)
class Options:
    """What the command line says. least: seconds that must be left for another library to begin."""

    cases: tuple[str, ...]
    libraries: tuple[str, ...]
    minutes: float
    rounds: int
    burst: float
    device: str
    backend: str
    real_steps: int
    workers: int
    least: float
    tiny: bool


class Clock:
    """The time that is left of the budget."""

    def __init__(self, minutes: float) -> None:
        self.end = time.perf_counter() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds, 0 where none are."""
        return max(0.0, self.end - time.perf_counter())


def libraries_of(case: str, options: Options) -> list[str]:
    """Those that a case has: fp8 where the layers are large."""
    low = case in LOW or options.tiny
    return [name for name in options.libraries if low or not name.endswith("fp8")]


def fitting(case: Case, most: int, models: int, free: int) -> int:
    """The largest power of two of images, up to `most`, whose step fits beside the state of so many models."""
    from vitrail.models.vit import Config
    from vitrail.models.zoo import configure
    from vitrail.plan import needed

    config = configure(f"ViT-{case.name}", image_size=case.resolution)
    assert isinstance(config, Config)
    batch = 1 << most.bit_length() - 1
    need = needed(config, batch, width=2)
    while batch > 1 and models * need.state + SPARE * need.image * batch > SHARE * free:
        batch //= 2
    return batch


def flops(case: Case) -> float:
    """Of a step, for one image: the backward pass is two forward passes."""
    from vitrail.models.cost import flops
    from vitrail.models.zoo import configure

    return 3.0 * flops(configure(f"ViT-{case.name}"), (case.resolution, case.resolution))


def measure(title: str, most: int, options: Options, clock: Clock, cache: str) -> tuple[Record, list[str]]:
    """One case, and what was not run of it. A batch that does not fit after all is halved, once."""
    case, libraries = Case.parse(title), libraries_of(title, options)
    for attempt in (0, 1):
        with Worker(title, environment({}, Path(cache)), "benchmarks.gpu_worker") as worker:
            facts = worker.ask("device", max(1.0, clock.left), device=options.device)
            # Before anything is compiled: it sets the number of threads, for which the compiler makes code anew.
            worker.ask("matrix", max(1.0, clock.left), device=options.device, threads=usable_cores())
            batch = max(1, fitting(case, most, len(libraries), facts["free"]) >> attempt)
            record: Record = {"case": title, "batch": batch, "flops_per_image": flops(case), "device": facts}
            record |= {"matrix_gflops": [], "foreign": [], "libraries": {}, "errors": {}}
            missing = build(worker, libraries, record, options, clock)
            if "OutOfMemory" in record["errors"].get(libraries[0], "") and not attempt:
                continue
            rounds(worker, record, options, clock)
            return record, [f"{title}: {name}" for name in missing]
    raise AssertionError("the second attempt returns")


def build(worker: Worker, libraries: list[str], record: Record, options: Options, clock: Clock) -> list[str]:
    """Compiles and warms up one after the other; returns those for which no time was left."""
    request = {"case": record["case"], "batch": record["batch"], "device": options.device, "backend": options.backend}
    missing = []
    for library in libraries:
        turns = options.rounds * options.burst * (1 + len(record["libraries"]))
        if clock.left < options.least + turns:
            missing.append(library)
            continue
        say(f"{record['case']}: {library}, {clock.left:.0f} s left")
        try:
            found = worker.ask("build", clock.left - turns, library=library, **request)
            found |= {"seconds_per_image": [], "host_share": [], "recompiled": 0}
            record["libraries"][library] = found
            record["graphs"] = found.pop("graphs_after")
        except WorkerError as error:
            report(record, library, error)
            if worker.process.poll() is not None:  # its other models are gone as well
                for name in list(record["libraries"]):
                    report(record, name, error)
                break
    return missing


def rounds(worker: Worker, record: Record, options: Options, clock: Clock) -> None:
    """Turns in shuffled order, each of about `burst` seconds, as long as there is time for all; one round at least."""
    order, found = random.Random(record["case"]), record["libraries"]
    if not found:
        return
    try:
        for number in range(options.rounds):
            if number and clock.left < 1.5 * options.burst * (len(found) + 1):
                break
            record["matrix_gflops"].append(worker.ask("rate", max(1.0, clock.left))["gflops"])
            turn = {}
            for library in order.sample(sorted(found), len(found)):
                count = max(1, round(options.burst / found[library]["step_seconds"]))
                turn[library] = worker.ask("steps", max(1.0, clock.left), library=library, count=count)
                found[library]["recompiled"] += turn[library]["graphs"] - record["graphs"]
                record["graphs"] = turn[library]["graphs"]
            record["foreign"].append(0.0)
            for library, answer in turn.items():  # a round counts as a whole
                found[library]["seconds_per_image"].append(answer["seconds"] / record["batch"])
                found[library]["host_share"].append(answer["host_seconds"] / answer["seconds"])
    except WorkerError as error:
        record["errors"]["the rounds"] = str(error)


def real(title: str, batch: int, options: Options, clock: Clock, cache: str) -> Record:
    """The Trainer on drawn JPEGs; each is read once."""
    case = title.removeprefix(REAL).strip()
    record: Record = {"case": title, "batch": batch, "flops_per_image": flops(Case.parse(case)), "matrix_gflops": []}
    record |= {"foreign": [0.0], "libraries": {}, "errors": {}, "workers": options.workers}
    # What the processes prepared while the model was compiled is used up before the clock starts.
    warm = max(2, options.real_steps // 3)
    request = {"case": case, "batch": batch, "steps": options.real_steps, "warm": warm, "workers": options.workers}
    request |= {"device": options.device, "images": (warm + options.real_steps) * batch}
    say(f"{title}, {clock.left:.0f} s left")
    with Worker(title, environment({}, Path(cache)), "benchmarks.gpu_worker") as worker:
        try:
            worker.ask("matrix", max(1.0, clock.left), device=options.device, threads=usable_cores())
            record["matrix_gflops"].append(worker.ask("rate", max(1.0, clock.left))["gflops"])
            found = worker.ask("real", max(1.0, clock.left), **request)
            found["seconds_per_image"] = [found["seconds_per_image"]]
            record["libraries"]["vitrail"] = found
        except WorkerError as error:
            report(record, "vitrail", error)
    return record


def run(options: Options, file: Path | None) -> dict[str, Any]:
    """All cases in order, as long as there is time; the file is written after each."""
    clock = Clock(options.minutes)
    document: dict[str, Any] = {"benchmark": "gpu", "machine": describe(), "settings": asdict(options)}
    document |= {"records": [], "not_run": [], "complete": False}
    sizes = TINY if options.tiny else CASES
    try:
        with tempfile.TemporaryDirectory(prefix="vitrail-benchmark-") as cache:
            for title in options.cases:
                if clock.left < options.least:
                    document["not_run"].append(title)
                elif title.startswith(REAL):
                    document["records"].append(real(title, sizes[title], options, clock, cache))
                else:
                    try:
                        record, missing = measure(title, sizes[title], options, clock, cache)
                        document["records"].append(record)
                        document["not_run"] += missing
                    except WorkerError as error:  # before any library could begin
                        document["records"].append({"case": title, "libraries": {}, "errors": {"start": str(error)}})
                write_json(file, document)
            document["complete"] = not document["not_run"]
    except KeyboardInterrupt:
        say("interrupted; the table holds what was finished")
    write_json(file, document)
    return document


def rows(record: Record) -> list[list[str]]:
    """The table's lines of a case, one a library."""
    lines = []
    for name, found in record["libraries"].items():
        seconds, low = seconds_of(record, name), "-"
        if not seconds:
            continue
        rate = 1 / statistics.median(seconds)
        pairs = zip(found["seconds_per_image"], record["matrix_gflops"], strict=True)
        share = statistics.median(record["flops_per_image"] / s / (gflops * 1e9) for s, gflops in pairs)
        peers = ["vitrail", *(n for n in record["libraries"] if not n.startswith("vitrail"))]
        if values := ratios(record, name, best_peer(record, peers)) if name.startswith("vitrail") else []:
            low = f"{statistics.median(values):.3f} ({'-'.join(f'{v:.3f}' for v in quartiles(values))})"
        more = ["-"] * 4
        if "compile_seconds" in found:
            peak = f"{found['peak'] / 2**30:.1f}" if found["peak"] else "-"
            host = f"{statistics.median(found['host_share']):.0%}"
            more = [peak, f"{found['compile_seconds']:.0f}", f"{found['graphs']} + {found['recompiled']}", host]
        waiting = f"{found['data_wait']:.1%}" if "data_wait" in found else "-"
        speed = [f"{rate:.0f}", f"{rate * record['flops_per_image'] / 1e12:.1f}", f"{share:.0%}"]
        lines.append([record["case"], name, str(record["batch"]), *speed, *more, waiting, low])
    return lines


def text(document: dict[str, Any]) -> str:
    """The result as markdown."""
    headers = ["case", "library", "batch", "img/s", "TFLOP/s", "of matrix rate", "peak GiB", "compile s"]
    headers += ["graphs + later", "host", "waiting", "time / best peer's (quartiles)"]
    records = document["records"]
    lines = [line for record in records for line in rows(record)]
    devices = [record["device"] for record in records if "device" in record]
    parts = [headline(document["machine"])]
    if devices:
        parts.append(", ".join(f"{name}: {value}" for name, value in devices[0].items() if name != "free"))
    rates = [value for record in records for value in record.get("matrix_gflops", [])]
    if rates:
        parts.append(f"Matrix products: {statistics.median(rates) / 1e3:.1f} TFLOP/s.")
    parts.append(table(headers, lines) if lines else "Nothing was measured.")
    if document["not_run"]:
        parts.append(f"Not run, for want of time: {'; '.join(document['not_run'])}.")
    parts += [f"{record['case']}: {name} failed: {why}" for record in records for name, why in record["errors"].items()]
    return "\n\n".join(parts)


def say(words: str) -> None:
    """Progress on standard error."""
    print(f"gpu: {words}", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    found.add_argument("--cases", type=names, help=f"with commas, of {', '.join(CASES)}")
    found.add_argument("--libraries", type=names, default=LIBRARIES, help="with commas")
    found.add_argument("--minutes", type=float, default=9.0, help="in all; what does not fit is left out and named")
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--workers", type=int, default=min(16, usable_cores()), help="processes for real input")
    found.add_argument("--cifar10", metavar="DATA", help="only the accuracy from scratch in so many minutes")
    found.add_argument("--tiny", action="store_true", help="a small model for a moment, on a CPU: whether all runs")
    found.add_argument("--json", type=Path, metavar="FILE")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, also where the time was too short for all; 1 done but something failed, 2 bad input."""
    parsing = parser()
    given = parsing.parse_args(arguments)
    sizes = TINY if given.tiny else CASES
    cases = given.cases or tuple(sizes)
    for what, values, known in (("case", cases, sizes), ("library", given.libraries, LIBRARIES)):
        if unknown := [value for value in values if value not in known]:
            parsing.error(f"{what} {unknown[0]!r} is not one of {', '.join(known)}")
    if given.minutes <= 0 or given.rounds < 1 or given.workers < 0:
        parsing.error("minutes must be more than 0, rounds 1 or more, workers 0 or more")
    if not given.tiny and not gpu():
        parsing.error("torch sees no GPU here; --tiny runs on a CPU")
    device = "cpu" if given.tiny else "cuda"
    if given.cifar10:
        return gpu_cifar10.main(given.cifar10, given.minutes, device, given.workers, given.tiny, given.json)
    how: dict[str, Any] = {"burst": 0.05, "backend": "aot_eager", "real_steps": 4, "least": 5.0}
    if not given.tiny:
        how = {"burst": 1.0, "backend": "inductor", "real_steps": 150, "least": 45.0}
    most = {"minutes": given.minutes, "rounds": given.rounds, "workers": given.workers}
    options = Options(cases=cases, libraries=given.libraries, device=device, tiny=given.tiny, **most, **how)
    document = run(options, given.json)
    print(text(document))
    return int(any(record["errors"] for record in document["records"]))


if __name__ == "__main__":
    sys.exit(main())

"""Images a second of whole training runs: ours, timm's script, and bare loops with and without a DataLoader.

    python -m benchmarks.training --timm-script pytorch-image-models/train.py --json training.json
    python -m benchmarks.training --cases demo --rounds 3 --data FOLDER_OF_PHOTOGRAPHS
    python -m benchmarks.training --cases S/16@224 --steps 8 --peers loader --workers 2      in a few minutes

The same ViT, AdamW, clipping, crops and flips in fp32 on the CPU, over the same files; only the images' order and the
initial weights differ. Every measurement is a fresh process with the same allocator, since one process may be 8 %
faster than the next, all of them once in each round in shuffled order; what counts is the ratio within a round. timm's
script and the DataLoader run with no worker processes and with two, and the quicker of the two in a first round, which
else only warms the file cache, is the one that is measured; --workers leaves that round out. Each image is read once:
caches do not help.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import timm_script
from benchmarks.machine import ROOT, busy_seconds, describe, headline, table, usable_cores, write_json
from benchmarks.measure import DISTURBED, Record, report
from benchmarks.pool import KEEP_FREED, WorkerError, environment
from benchmarks.report import quartiles, ratios, seconds_of
from benchmarks.throughput import names
from benchmarks.trainee import CASES, CLIP, DECAY, LR, Case

CLASSES, HELD_BACK = 10, 20
PEERS = ("timm", "loader", "bare")
WORKERS = (0, 2)
TARGETS = "Targets: at most 1.03 of the bare loop's time, at most 1 of timm's, at most 5 % waiting for images."


@dataclass(frozen=True)
class Options:
    """What the command line says; no number of workers means the quicker one of WORKERS."""

    cases: tuple[str, ...]
    peers: tuple[str, ...]
    workers: int | None
    rounds: int
    steps: int | None
    data: Path | None
    script: Path | None
    threads: int
    timeout: float

    @property
    def libraries(self) -> list[str]:
        """Ours first, as the report has it."""
        return ["vitrail", *self.peers]


def photographs(folder: Path, given: Path | None, count: int) -> Path:
    """Class folders with `count` training images, which are those given or 400 random ones, over and over."""
    if given:
        files = sorted(path for path in given.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not files:
            raise ValueError(f"{given} has no photographs (.jpg, .jpeg, .png)")
    else:
        files = draw_photographs(folder / "drawn", 400)
    for split, number in (("train", count), ("val", HELD_BACK)):
        for i in range(number):
            place = folder / "photos" / split / f"class{i % CLASSES}" / f"{i:06d}{files[i % len(files)].suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(files[i % len(files)], place)
            except OSError:  # another disk
                shutil.copyfile(files[i % len(files)], place)
    return folder / "photos"


def draw_photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs of 500 x 375 whose smooth noise has about the detail, and so the bytes, of photographs."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (94, 125, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:04d}.jpg", quality=90)
    return sorted(folder.iterdir())


def fashion_files(folder: Path, count: int) -> Path:
    """Fashion-MNIST's four files with `count` training images, which are those in the package, over and over."""
    import numpy as np

    from vitrail.data.sources import mnist

    out = folder / "FashionMNIST" / "raw"  # where torchvision, and so timm, looks
    out.mkdir(parents=True)
    for path in (Path(mnist.__file__).parents[1] / "fashion").glob("*-ubyte.gz"):
        array = mnist.read_idx(path, rank=3 if "idx3" in path.name else 1)
        array = np.resize(array, (count, *array.shape[1:])) if path.name.startswith("train") else array
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (out / path.stem).write_bytes(header + array.tobytes())
    return out


def timm_command(case: Case, data: Path, script: Path, steps: int, workers: int, output: str) -> list[str]:
    """One epoch of the script, without evaluation."""
    files = ["--data-dir", str(data)]
    crop = ["--scale", "0.08", "1", "--hflip", "0.5"]
    if not case.photos:
        files = ["--dataset", "torch/fashion_mnist", "--data-dir", str(data.parents[1])]
        crop = ["--scale", "1", "1", "--ratio", "1", "1", "--hflip", "0.5"]
    values = [str(value) for value in case.mean]
    return [
        *(sys.executable, str(script), *files, "--train-split", "train", "--val-split", ""),
        *(*timm_script.model(case.shape), *timm_script.SAME, *crop, "--mean", *values, "--std", *values),
        *("--lr", str(LR), "--weight-decay", str(DECAY), "--clip-grad", str(CLIP), "--smoothing", "0"),
        *("--epochs", "1", "--batch-size", str(case.batch), "--workers", str(workers)),
        *("--log-interval", str(case.warm), "--output", output),
    ]


class Bench:
    """The runs of one case, each a process of its own."""

    def __init__(self, name: str, options: Options, folder: Path) -> None:
        self.name, self.case, self.options, self.folder = name, CASES[name], options, folder
        self.steps = options.steps or self.case.steps
        count = (self.case.warm + self.steps) * self.case.batch
        self.data = photographs(folder, options.data, count) if self.case.photos else fashion_files(folder, count)

    def run(self, library: str, workers: int) -> dict[str, Any]:
        """{"seconds_per_image", "data_wait" for ours, "foreign": the share of the machine that others took}."""
        if library == "timm":
            assert self.options.script
            with tempfile.TemporaryDirectory(dir=self.folder) as output:
                command = timm_command(self.case, self.data, self.options.script, self.steps, workers, output)
                text, foreign = self.finish(library, command)
            seconds = timm_script.seconds_per_image(text, self.case.batch, self.case.warm)
            return {"seconds_per_image": seconds, "foreign": foreign}
        request = {"how": library, "case": self.name, "data": str(self.data), "steps": self.steps, "workers": workers}
        text, foreign = self.finish(library, [sys.executable, "-m", "benchmarks.trainee", json.dumps(request)])
        return json.loads(text.strip().splitlines()[-1]) | {"foreign": foreign}

    def finish(self, library: str, command: list[str]) -> tuple[str, float]:
        """What a command printed, and what share of the machine others took. WorkerError where it fails."""
        variables = environment(KEEP_FREED) | {"OMP_NUM_THREADS": str(self.options.threads)}
        start, busy, own = time.perf_counter(), busy_seconds(), children()
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if library == "timm" else subprocess.PIPE,
                text=True,
                timeout=self.options.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise WorkerError(f"{library}: no end within {self.options.timeout:g} s") from error
        wall, busy_after = time.perf_counter() - start, busy_seconds()
        if done.returncode:
            raise WorkerError(f"{library}: status {done.returncode}\n{(done.stderr or done.stdout)[-2000:]}")
        if busy is None or busy_after is None:
            return done.stdout, 0.0
        return done.stdout, max(0.0, busy_after - busy - (children() - own)) / (wall * (os.cpu_count() or 1))


def children() -> float:
    """Processor seconds of all processes that this one started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def measure(name: str, options: Options) -> Record:
    """One case: every library's seconds per image in every round."""
    order = random.Random(name)
    record: Record = {"case": name, "batch": CASES[name].batch, "foreign": [], "libraries": {}, "errors": {}}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(name, options, Path(folder))
        record["steps"] = bench.steps
        for library in options.libraries:
            try:
                record["libraries"][library] = prepare(bench, library)
            except WorkerError as error:
                report(record, library, error)
            if options.workers is None:
                say(f"{name}: first run of {library} done")
        for number in range(options.rounds):
            shares = [0.0]
            for library in order.sample(sorted(record["libraries"]), len(record["libraries"])):
                found = record["libraries"][library]
                try:
                    result = bench.run(library, found["workers"])
                except WorkerError as error:
                    report(record, library, error)
                    continue
                shares.append(result.pop("foreign"))
                for key, value in result.items():
                    found.setdefault(key, []).append(value)
            record["foreign"].append(max(shares))
            busy = f"; others took {max(shares):.0%} of the machine" if max(shares) > DISTURBED else ""
            say(f"{name}: round {number + 1} of {options.rounds} done{busy}")
    return record


def prepare(bench: Bench, library: str) -> Record:
    """The first round: the number of worker processes that is quicker, where there is a choice.

    WorkerError where none of them works: some versions of timm's script cannot do without worker processes.
    """
    choices = WORKERS if library in ("timm", "loader") else WORKERS[:1]
    if bench.options.workers is not None:
        return {"workers": bench.options.workers if len(choices) > 1 else choices[0], "first": {}}
    seconds, errors = {}, []
    for workers in choices:
        try:
            seconds[workers] = bench.run(library, workers)["seconds_per_image"]
        except WorkerError as error:
            errors.append(error)
    if not seconds:
        raise errors[0]
    return {"workers": min(seconds, key=lambda workers: seconds[workers]), "first": seconds}


def say(text: str) -> None:
    """Progress on standard error."""
    print(f"training: {text}", file=sys.stderr, flush=True)


def text(document: Record) -> str:
    """The result as markdown."""
    libraries = document["settings"]["libraries"]
    headers = ["case", "batch", "vitrail: img/s", "waiting"]
    headers += [f"{name}: img/s" for name in libraries[1:]]
    headers += [*(f"time / {name}'s (quartiles)" for name in libraries[1:]), "quiet rounds"]
    rows = []
    for record in document["records"]:
        waits = record["libraries"].get("vitrail", {}).get("data_wait", [])
        cells = [record["case"], str(record["batch"]), speed(record, "vitrail")]
        cells.append(f"{statistics.median(waits):.1%}" if waits else "-")
        cells += [speed(record, name) for name in libraries[1:]]
        for name in libraries[1:]:
            values = ratios(record, "vitrail", name if name in record["libraries"] else None)
            spread = "-".join(f"{value:.3f}" for value in quartiles(values)) if values else ""
            cells.append(f"{statistics.median(values):.3f} ({spread})" if values else "-")
        undisturbed = sum(share <= DISTURBED for share in record["foreign"])
        rows.append([*cells, f"{undisturbed} of {len(record['foreign'])}"])
    parts = [headline(document["machine"]), table(headers, rows), TARGETS]
    failures = [f"{r['case']}: {name} failed: {why}" for r in document["records"] for name, why in r["errors"].items()]
    return "\n\n".join([*parts, *failures])


def speed(record: Record, library: str) -> str:
    """The median of the rounds that count, with the worker processes where it had a choice."""
    seconds = seconds_of(record, library)
    if not seconds:
        return "failed" if library in record["errors"] else "-"
    workers = record["libraries"][library]["workers"]
    return f"{1 / statistics.median(seconds):.1f}" + (f" (-j {workers})" if library in ("timm", "loader") else "")


def parsed(arguments: Sequence[str] | None) -> tuple[Options, Path | None]:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", default=",".join(CASES), help="with commas")
    parser.add_argument("--peers", help=f"of {','.join(PEERS)}; all of them, timm where its script is given")
    parser.add_argument("--workers", type=int, help="processes of timm and the loader, instead of trying 0 and 2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="timed ones of every run, instead of what the case says")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="photographs instead of random ones")
    parser.add_argument("--timm-script", type=Path, metavar="PATH", help="train.py of pytorch-image-models")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one run")
    parser.add_argument("--json", type=Path, metavar="FILE")
    found = parser.parse_args(arguments)
    cases = names(found.cases)
    for name in cases:
        if name not in CASES:
            parser.error(f"case {name!r} is not one of {', '.join(CASES)}")
        if found.steps is not None and found.steps <= CASES[name].warm:
            parser.error(f"steps ({found.steps}) must be more than the {CASES[name].warm} that {name} warms up with")
    if found.rounds < 1 or found.threads < 1:
        parser.error("rounds and threads must be 1 or more")
    if found.timm_script and not found.timm_script.is_file():
        parser.error(f"{found.timm_script} is not a file")
    script = found.timm_script.resolve() if found.timm_script else None
    peers = names(found.peers) if found.peers else PEERS if script else PEERS[1:]
    if unknown := [name for name in peers if name not in PEERS]:
        parser.error(f"peers: {', '.join(unknown)}; known are {', '.join(PEERS)}")
    if "timm" in peers and not script:
        parser.error("timm is measured by its script; give --timm-script")
    timing = (found.rounds, found.steps, found.data, script, found.threads, found.timeout)
    return Options(cases, peers, found.workers, *timing), found.json


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 done but something failed, 2 bad input, 130 interrupted."""
    options, output = parsed(arguments)
    document: Record = {"benchmark": "training", "machine": describe(), "records": []}
    document["settings"] = {"libraries": options.libraries, "threads": options.threads, "rounds": options.rounds}
    try:
        for name in options.cases:
            document["records"].append(measure(name, options))
            write_json(output, document)
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        print(f"benchmarks.training: {error}", file=sys.stderr)
        return 2
    print(text(document))
    return int(any(record["errors"] for record in document["records"]))


if __name__ == "__main__":
    sys.exit(main())

"""Images a second of whole training runs: ours, timm's script, and bare loops with and without a DataLoader.

    python -m benchmarks.training --timm-script pytorch-image-models/train.py --json training.json
    python -m benchmarks.training --cases demo --rounds 3 --data FOLDER_OF_PHOTOGRAPHS
    python -m benchmarks.training --cases S/16@224 --steps 8 --peers loader --workers 2      in a few minutes

The same ViT, AdamW, clipping, crops and flips in fp32 on the CPU, over the same files; only the images' order and the
initial weights differ. Every measurement is a fresh process with the same allocator, since one process may be 8 %
faster than the next. Its speed is that of its own steps after the warm-up: of timm's script as its log has each, of the
others by the clock at the end of each. timm's script and the DataLoader run with no worker processes and with two, and
the quicker of the two in a first round, which else only warms the file cache, is the one that is measured; --workers
leaves that round out. Each image is read once: caches do not help.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import command, timm_script
from benchmarks.command import file, known, names, positive
from benchmarks.photographs import fashion_files, photographs
from benchmarks.pool import KEEP_FREED, WorkerError, environment, finish, program
from benchmarks.rounds import (
    STEPS,
    Record,
    deadline,
    fail,
    images_per_second,
    new,
    report,
    say,
    steady,
    take_turns,
    values,
)
from benchmarks.trainee import CASES, CLIP, DECAY, LR, Case

PEERS = ("timm", "loader", "bare")
CHOOSING = ("timm", "loader")  # have worker processes, or none
WORKERS = (0, 2)
TARGETS = "Aims: at most 1.03 of the bare loop's time, at most 1 of timm's, at most 5 % waiting for images."


def timm_command(case: Case, data: Path, script: Path, workers: int, output: str) -> list[str]:
    """One epoch of the script, without evaluation; each step has a line in its log."""
    files = ["--data-dir", str(data)] if case.photos else []
    files = files or ["--dataset", "torch/fashion_mnist", "--data-dir", str(data.parents[1])]
    crop = {"scale": (0.08, 1)} if case.photos else {"scale": (1, 1), "ratio": (1, 1)}
    # Without a warm-up of 0, which is 5 epochs there, it would train six.
    optimisation = {"lr": LR, "weight_decay": DECAY, "clip_grad": CLIP, "smoothing": 0, "warmup_epochs": 0, "epochs": 1}
    reading = {"train_split": "train", "val_split": "", "hflip": 0.5, "mean": case.mean, "std": case.mean, **crop}
    more = {"batch_size": case.batch, "workers": workers, "log_interval": 1, "output": output}
    return timm_script.command(script, case.shape, files, **reading, **optimisation, **more)


class Bench:
    """The runs of one case, each a process of its own."""

    def __init__(self, name: str, options: Namespace, folder: Path) -> None:
        self.name, self.case, self.options, self.folder = name, CASES[name], options, folder
        self.steps = options.steps or self.case.steps
        count = (self.case.warm + self.steps) * self.case.batch
        self.data = photographs(folder, options.data, count) if self.case.photos else fashion_files(folder, count)
        self.variables = environment(KEEP_FREED) | {"OMP_NUM_THREADS": str(options.threads)}

    def run(self, library: str, workers: int) -> dict[str, Any]:
        """{"seconds" of an image, "workers", "data_wait" for ours}. Raises as `finish` and `steady` do."""
        if library == "timm":
            with tempfile.TemporaryDirectory(dir=self.folder) as output:
                words = timm_command(self.case, self.data, self.options.timm_script, workers, output)
                log = finish(words, self.options.timeout, self.variables, merged=True)
            result: dict[str, Any] = {"steps": timm_script.step_seconds(log, self.case.batch)}
        else:
            request = {"how": library, "case": self.name, "data": str(self.data), "steps": self.steps}
            words = ["-m", "benchmarks.trainee", json.dumps({**request, "workers": workers})]
            result = program(words, self.options.timeout, self.variables)
        result["seconds"] = steady(result["steps"], self.case.batch, self.case.warm)
        return result | {"workers": workers}

    def workers(self, library: str) -> int:
        """The quicker number of worker processes, if there is a choice. WorkerError if neither works: some versions of
        timm's script need them."""
        chosen = self.options.workers
        choices = (WORKERS if chosen is None else (chosen,)) if library in CHOOSING else (0,)
        if chosen is not None:
            return choices[0]
        seconds, errors = {}, []
        for workers in choices:
            try:
                seconds[workers] = self.run(library, workers)["seconds"]
            except (WorkerError, ValueError) as error:
                errors.append(error)
        if not seconds:
            raise WorkerError(str(errors[0]))
        say(f"{self.name}: first run of {library} done")
        return min(seconds, key=lambda workers: seconds[workers])


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Measures every case: each library's seconds per image, by round."""
    for place, name in enumerate(options.cases):
        record = new(name, "vitrail", batch=CASES[name].batch)
        records.append(record)
        with tempfile.TemporaryDirectory() as folder:
            bench, turns = Bench(name, options, Path(folder)), {}
            for library in ("vitrail", *options.peers):
                try:
                    turns[library] = partial(bench.run, library, bench.workers(library))
                except WorkerError as error:
                    fail(record, library, error)
            take_turns(record, turns, options.rounds, deadline(options.until, len(options.cases) - place))
        yield


def workers(record: Record, name: str) -> str:
    """Processes that prepare images, if the library has a choice."""
    return str(values(record, name, "workers")[0]) if name in CHOOSING else ""


def waiting(record: Record, name: str) -> str:
    """The fraction of the time for which our Trainer waited for images."""
    waits = values(record, name, "data_wait")
    return f"{statistics.median(waits):.1%}" if waits else ""


def text(records: list[Record]) -> str:
    """The table, with each side's own rate beside the ratio."""
    columns = {"batch": lambda record, name: str(record["batch"]), "workers": workers, "waiting": waiting}
    return f"{report(records, {**columns, 'images/s': images_per_second})}\n\n{TARGETS}"


def parse(arguments: Sequence[str] | None) -> Namespace:
    """The command line, checked."""
    parser = command.parser("training", __doc__)
    parser.add_argument("--cases", type=names, default=tuple(CASES), help="with commas")
    parser.add_argument("--peers", type=names, help=f"of {','.join(PEERS)}; all, timm where its script is given")
    parser.add_argument("--workers", type=int, help="processes of timm and the loader, instead of trying 0 and 2")
    parser.add_argument("--steps", type=positive, help="timed ones of every run, instead of what the case says")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="photographs instead of random ones")
    parser.add_argument("--timm-script", type=file, metavar="PATH", help="train.py of pytorch-image-models")
    options = parser.parse_args(arguments)
    known(options.cases, CASES, parser)
    if options.steps is not None and options.steps < STEPS:
        parser.error(f"steps ({options.steps}) must be {STEPS} or more: fewer tell no speed")
    options.peers = options.peers or (PEERS if options.timm_script else PEERS[1:])
    known(options.peers, PEERS, parser)
    if "timm" in options.peers and not options.timm_script:
        parser.error("timm is measured by its script; give --timm-script")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    return command.run("training", parse(arguments), measure, text)


if __name__ == "__main__":
    sys.exit(main())

"""The set to run after every change of note: each topic in short, all of them in a quarter of an hour on two cores.

    python -m benchmarks                              startup, inference, step, memory, loader, epoch
    python -m benchmarks loader step --minutes 5      some of them
    python -m benchmarks --json results/              with TOPIC.json, TOPIC.md and summary.json in that folder

Nothing is fetched: photographs are drawn unless --data gives some. Each topic has its part of the minutes, and makes
the rounds that fit, one at least; what it leaves or overdraws is the later ones'. The rate of matrix products is
measured before each. Topics are other benchmarks with short settings; the commands in benchmarks/__init__.py measure
more.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import inference, loader, startup, throughput, training
from benchmarks.command import file, known
from benchmarks.machine import describe, headline, usable_cores, write_json
from benchmarks.measure import matrix
from benchmarks.pool import WorkerError
from benchmarks.rounds import say

PEERS = ("timm", "transformers", "torchvision")
BESIDE = f"beside {', '.join(PEERS)}"
TRAINING = ",".join(("vitrail:cores", *PEERS))
EAGER = ("--libraries", TRAINING, "--device", "cpu", "--modes", "eager", "--passes", "train")
ENOUGH = 7  # rounds


@dataclass(frozen=True)
class Topic:
    """A benchmark with its short settings; minutes: of a quarter of an hour, for three rounds on two quiet cores."""

    about: str
    main: Callable[[Sequence[str]], int]
    arguments: tuple[str, ...]
    minutes: float
    reads_photographs: bool = False


TOPICS = {
    "startup": Topic(
        about="fresh processes until the help, a model's size, an answer, a first step of training; beside timm",
        main=startup.main,
        arguments=("--only", "help,info,predict,step"),
        minutes=2.2,
    ),
    "inference": Topic(
        about=f"forward passes of S/16 at 224, batches of 1 and 16: plain and int8 {BESIDE}",
        main=inference.main,
        arguments=("--cases", "S/16@224", "--libraries", ",".join((*PEERS, "vitrail:plain", "vitrail:int8"))),
        minutes=2.4,
    ),
    "step": Topic(
        about=f"forward and backward passes of S/16 at 224 and Ti/4 at 32, {BESIDE}",
        main=throughput.main,
        arguments=("--no-memory", "--cases", "S/16@224,Ti/4@32", *EAGER),
        minutes=3.1,
    ),
    "memory": Topic(
        about=f"peak memory of such a step of S/16, {BESIDE}",
        main=throughput.main,
        arguments=("--no-speed", "--cases", "S/16@224", *EAGER),
        minutes=1.1,
    ),
    "loader": Topic(
        about="random crops of JPEGs, from files and packed, beside timm's loader and ImageFolder",
        main=loader.main,
        arguments=(),
        minutes=2.8,
        reads_photographs=True,
    ),
    "epoch": Topic(
        about="training of S/16 at 224 on a folder of JPEGs: the Trainer beside timm's script, or a DataLoader's loop",
        main=training.main,
        arguments=("--cases", "S/16@224", "--steps", "8", "--workers", "2"),
        minutes=3.4,
        reads_photographs=True,
    ),
}


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked before anything is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    about = "; ".join(f"{name}: {topic.about}" for name, topic in TOPICS.items())
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"all of them, or some. {about}")
    parser.add_argument("--minutes", type=float, default=15.0, help="for all topics together")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="photographs for loader and epoch, not drawn ones")
    parser.add_argument("--timm-script", type=file, metavar="PATH", help="train.py of pytorch-image-models, for epoch")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="where each topic's JSON and table are written")
    options = parser.parse_args(arguments)
    known(options.topics or TOPICS, TOPICS, parser)
    if options.minutes <= 0:
        parser.error(f"minutes ({options.minutes:g}) must be more than 0")
    if options.data and not options.data.is_dir():
        parser.error(f"{options.data} is not a folder")
    options.topics = [name for name in TOPICS if name in options.topics or not options.topics]
    return options


def words(name: str, minutes: float, options: argparse.Namespace) -> list[str]:
    """The command line of a topic's benchmark."""
    topic = TOPICS[name]
    found = [*topic.arguments, "--rounds", str(ENOUGH), "--minutes", f"{max(0.01, minutes):.2f}"]
    if topic.reads_photographs and options.data:
        found += ["--data", str(options.data)]
    if name == "epoch":
        script = options.timm_script
        found += ["--peers", "timm", "--timm-script", str(script)] if script else ["--peers", "loader"]
    return found + (["--json", str(options.json / f"{name}.json")] if options.json else [])


def run(name: str, minutes: float, options: argparse.Namespace, gflops: float) -> dict[str, Any]:
    """Runs one topic, prints and writes its table. What breaks it is printed, and the others go on."""
    topic, start, tables = TOPICS[name], time.perf_counter(), io.StringIO()
    if options.json:
        for old in (options.json / f"{name}.json", options.json / f"{name}.md"):
            old.unlink(missing_ok=True)  # or it would pass for this run's where the topic fails
    try:
        with redirect_stdout(tables):
            status = topic.main(words(name, minutes, options))
    except SystemExit:  # its command line; the reason has been printed
        status = 2
    except Exception:
        traceback.print_exc()
        status = 1
    taken = (time.perf_counter() - start) / 60
    header = f"{taken:.1f} minutes, status {status}; matrix products before it: {gflops:.0f} GFLOP/s."
    report = f"## {name}: {topic.about}\n\n{header}\n\n{tables.getvalue().strip()}\n"
    print(report, flush=True)
    if options.json:
        options.json.mkdir(parents=True, exist_ok=True)
        (options.json / f"{name}.md").write_text(report)
    return {"minutes": round(taken, 2), "status": status, "matrix_product_gflops": round(gflops, 1)}


def run_all(options: argparse.Namespace, rate: Callable[[], float], summary: dict[str, Any]) -> None:
    """Runs every topic with its part of the minutes that are left, and adds each to the summary."""
    start = time.perf_counter()
    for place, name in enumerate(options.topics):
        gone = (time.perf_counter() - start) / 60
        waiting = sum(TOPICS[other].minutes for other in options.topics[place:])
        minutes = (options.minutes - gone) * TOPICS[name].minutes / waiting
        say(f"{name}, about {max(0.0, minutes):.1f} minutes; {gone:.1f} of {options.minutes:g} gone")
        gflops = statistics.median(rate() for _ in range(3))
        summary["topics"][name] = run(name, minutes, options, gflops)
        if options.json:
            write_json(options.json / "summary.json", summary)
        if summary["topics"][name]["status"] == 130:
            raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: the worst of the topics': 0 done, 1 something failed, 2 bad input, 130 interrupted."""
    options = parsed(arguments)
    summary: dict[str, Any] = {"benchmark": "set", "machine": describe(), "minutes": options.minutes, "topics": {}}
    print(f"# Benchmarks\n\n{headline(summary['machine'])}\n", flush=True)
    alone = argparse.Namespace(keep_freed=True, device="cpu", threads=usable_cores(), timeout=600.0)
    try:
        with matrix(alone) as rate:
            run_all(options, rate, summary)
    except KeyboardInterrupt:
        return 130
    except WorkerError as error:
        say(f"the matrix product could not be measured: {error}")
        return 1
    return max(found["status"] for found in summary["topics"].values())


if __name__ == "__main__":
    sys.exit(main())

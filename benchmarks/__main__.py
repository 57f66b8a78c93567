"""The set to run after every change of note: each topic in short, all of them in a quarter of an hour on two cores.

    python -m benchmarks                              startup, inference, step, memory, loader, epoch
    python -m benchmarks loader step --minutes 5      some of them
    python -m benchmarks --json results/              with TOPIC.json, TOPIC.md and summary.json in that folder
    python -m benchmarks --plan                       only say what would run and for how long

Nothing is fetched: photographs are drawn unless --data gives some. The minutes are shared out as rounds: each topic has
one at least, then each in turn one more as long as they fit; what a topic leaves or overdraws is the later ones'. The
rate of matrix products is measured before each. Topics are other benchmarks with short settings (benchmarks/topics.py);
the commands in benchmarks/__init__.py measure more.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, headline, table, write_json
from benchmarks.measure import matrix_worker, open_matrix
from benchmarks.plan import Options
from benchmarks.pool import Worker, WorkerError
from benchmarks.topics import REFERENCE, TOPICS, Topic, share

SPARED = 0.1  # of the time: rounds that other programs disturb are measured again


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked before anything is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    about = "; ".join(f"{name}: {topic.about}" for name, topic in TOPICS.items())
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"all of them, or some. {about}")
    parser.add_argument("--minutes", type=float, default=15.0, help="for all topics together")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="photographs for loader and epoch, not drawn ones")
    parser.add_argument("--timm-script", type=Path, metavar="PATH", help="train.py of pytorch-image-models, for epoch")
    parser.add_argument("--json", type=Path, metavar="FOLDER", help="where each topic's JSON and table are written")
    parser.add_argument("--plan", action="store_true", help="print the topics and the estimate, measure nothing")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.topics if name not in TOPICS]:
        parser.error(f"topics: {', '.join(unknown)}; known are {', '.join(TOPICS)}")
    if options.minutes <= 0:
        parser.error(f"minutes ({options.minutes:g}) must be more than 0")
    if options.data and not options.data.is_dir():
        parser.error(f"{options.data} is not a folder")
    if options.timm_script and not options.timm_script.is_file():
        parser.error(f"{options.timm_script} is not a file")
    options.topics = [name for name in TOPICS if name in options.topics or not options.topics]
    return options


def words(name: str, rounds: int, options: argparse.Namespace) -> list[str]:
    """What a topic's benchmark is given."""
    topic = TOPICS[name]
    found = [*topic.arguments, *(["--rounds", str(rounds)] if topic.each else [])]
    if topic.reads_photographs and options.data:
        found += ["--data", str(options.data)]
    if name == "epoch":
        script = options.timm_script
        found += ["--peers", "timm", "--timm-script", str(script)] if script else ["--peers", "loader"]
    return found + (["--json", str(options.json / f"{name}.json")] if options.json else [])


def run(name: str, topic: Topic, rounds: int, options: argparse.Namespace, gflops: float) -> dict[str, Any]:
    """One topic, its table printed and written. What breaks it is told, and the others go on."""
    if options.json:
        for old in (options.json / f"{name}.json", options.json / f"{name}.md"):
            old.unlink(missing_ok=True)  # or it would pass for this run's where the topic fails
    start, tables = time.perf_counter(), io.StringIO()
    try:
        with redirect_stdout(tables):
            status = topic.main(words(name, rounds, options))
    except SystemExit:  # its command line; the reason has been printed
        status = 2
    except Exception:
        traceback.print_exc()
        status = 1
    minutes = (time.perf_counter() - start) / 60
    told = f"Rounds: {rounds}; " if topic.each else ""
    told += f"{minutes:.1f} minutes, status {status}; matrix products before it: {gflops:.0f} GFLOP/s."
    report = f"## {name}: {topic.about}\n\n{told}\n\n{tables.getvalue().strip()}\n"
    print(report, flush=True)
    if options.json:
        note(options.json / f"{name}.json", gflops)
        options.json.mkdir(parents=True, exist_ok=True)
        (options.json / f"{name}.md").write_text(report)
    return {"rounds": rounds, "minutes": round(minutes, 2), "status": status, "matrix_product_gflops": gflops}


def note(file: Path, gflops: float) -> None:
    """The rate beside the machine that a topic's JSON describes."""
    if file.exists():
        document = json.loads(file.read_text())
        document["machine"]["matrix_product_gflops"] = gflops
        write_json(file, document)


def run_all(options: argparse.Namespace, matrix: Worker, gflops: float, summary: dict[str, Any]) -> None:
    """Every topic with the rounds for which there is time; the summary grows with them."""
    start, expected = time.perf_counter(), 0.0
    slowness = pace_of(gflops)
    fewest = slowness * sum(TOPICS[name].seconds(TOPICS[name].rounds[0]) for name in options.topics) / 60
    if fewest > options.minutes:
        say(f"a round of each takes about {fewest:.0f} minutes here; name the topics to have fewer")
    for place, name in enumerate(options.topics):
        gone = time.perf_counter() - start
        # A machine that others use falls behind its matrix products' promise.
        pace = max(slowness, gone / expected) if expected else slowness
        waiting = [TOPICS[other] for other in options.topics[place:]]
        rounds = share(waiting, (1 - SPARED) * 60 * options.minutes - gone, pace)[0]
        seconds = waiting[0].seconds(rounds)
        say(f"{name}, about {pace * seconds / 60:.1f} minutes; {gone / 60:.1f} of {options.minutes:g} gone")
        now = statistics.median(matrix.ask("rate", Options.timeout)["gflops"] for _ in range(3))
        summary["topics"][name] = run(name, waiting[0], rounds, options, round(now, 1))
        expected += seconds
        if options.json:
            write_json(options.json / "summary.json", summary)
        if summary["topics"][name]["status"] == 130:
            raise KeyboardInterrupt


def pace_of(gflops: float) -> float:
    """How many times longer than said everything takes; never less than once, since not all of it is products."""
    return max(1.0, REFERENCE / gflops)


def plan(options: argparse.Namespace, gflops: float) -> str:
    """The topics with their rounds and minutes on a machine of this rate."""
    chosen, pace = [TOPICS[name] for name in options.topics], pace_of(gflops)
    rounds = share(chosen, (1 - SPARED) * 60 * options.minutes, pace)
    minutes = [pace * topic.seconds(number) / 60 for topic, number in zip(chosen, rounds, strict=True)]
    rows = [
        [name, str(number) if topic.each else "", f"{length:.1f}", topic.about]
        for name, topic, number, length in zip(options.topics, chosen, rounds, minutes, strict=True)
    ]
    return table(["topic", "rounds", "minutes", "what"], [*rows, ["all", "", f"{sum(minutes):.1f}", ""]])


def say(text: str) -> None:
    """Progress on standard error."""
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: the worst of the topics': 0 done, 1 something failed, 2 bad input, 130 interrupted."""
    options = parsed(arguments)
    summary: dict[str, Any] = {"benchmark": "set", "machine": describe(), "minutes": options.minutes, "topics": {}}
    start = time.perf_counter()
    try:
        with matrix_worker(Options()) as matrix:
            gflops = open_matrix(matrix, Options())
            if options.plan:
                print(plan(options, gflops))
                return 0
            summary["machine"]["matrix_product_gflops"] = round(gflops, 1)
            print(f"# Benchmarks\n\n{headline(summary['machine'])}\n", flush=True)
            run_all(options, matrix, gflops, summary)
    except KeyboardInterrupt:
        return 130
    except WorkerError as error:
        print(f"the matrix product could not be measured: {error}", file=sys.stderr)
        return 1
    say(f"all done after {(time.perf_counter() - start) / 60:.1f} minutes")
    return max(found["status"] for found in summary["topics"].values())


if __name__ == "__main__":
    sys.exit(main())

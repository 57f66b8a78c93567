"""This checkout beside another one of Vitrail, in one run: what a change made faster or slower.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.versions /tmp/before --only help,predict --rounds 9

Every measurement is a fresh process with one of the checkouts on PYTHONPATH. The ratio is the other's time divided by
this one's: above 1, this checkout is faster. Seconds are of an image or of a command; what is timed inside a process is
benchmarks/versions_worker.py, which knows what changed its place.
"""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.command import known, names
from benchmarks.machine import ROOT
from benchmarks.photographs import photographs
from benchmarks.pool import KEEP_FREED, environment, program
from benchmarks.rounds import Record, deadline, new, report, seconds, steady, take_turns, warm_up

WORKER = Path(__file__).with_name("versions_worker.py")
COMMANDS = {"predict": ("predict", "run", "IMAGE"), "help": ("--help",)}
TOPICS = {
    "files": "loader, from files",
    "packed": "loader, packed",
    "step": "training step, S/16",
    "one": "inference, S/16, batch 1",
    "sixteen": "inference, S/16, batch 16",
    "predict": "vitrail predict, one JPEG",
    "help": "vitrail --help",
}


def prepared(root: Path, folder: Path, data: Path, options: Namespace) -> Callable[[str], dict[str, Any]]:
    """Makes a checkout's run of two steps, whose description the worker reads and whose model predicts, and packs the
    data. Returns what measures a topic."""
    variables = environment(KEEP_FREED) | {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    variables["OMP_NUM_THREADS"] = str(options.threads)
    folder.mkdir()

    def python(*words: object) -> dict[str, Any]:
        return program([str(word) for word in words], options.timeout, variables, folder)

    def turn(topic: str) -> dict[str, Any]:
        if topic in COMMANDS:
            image = next((data / "val").rglob("*.jpg"))
            return python("-m", "vitrail", *(image if word == "IMAGE" else word for word in COMMANDS[topic]))
        place = folder / "packed" if topic == "packed" else data
        found = python(WORKER, json.dumps({"topic": topic, "data": str(place), "tiny": options.tiny}))
        return {"seconds": steady(found["steps"], found["batch"], found["warm"])}

    python("-m", "vitrail", "train", "small", "--data", data, "--duration", "2 steps", "--out", "run")
    python("-m", "vitrail", "data", "pack", data, "packed")
    return turn


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Measures each topic, both checkouts in turn."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, roots = Path(temporary).resolve(), {"other": options.other.resolve(), "this": ROOT}
        data = photographs(folder, None, 40 if options.tiny else 960)  # as many as the worker reads: none twice
        sides = {name: prepared(root, folder / name, data, options) for name, root in roots.items()}
        for place, topic in enumerate(options.only):
            turns = {name: partial(side, topic) for name, side in sides.items()}
            records.append(new(TOPICS[topic], "other"))
            if topic in COMMANDS:  # the others warm up by themselves
                warm_up(turns)
            take_turns(records[-1], turns, options.rounds, deadline(options.until, len(options.only) - place))
            yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser = command.parser("versions", __doc__)
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT", help="a folder with a folder vitrail")
    parser.add_argument("--only", type=names, default=tuple(TOPICS), help=f"of {','.join(TOPICS)}")
    parser.add_argument("--tiny", action="store_true", help="small models for a moment: whether all runs")
    options = parser.parse_args(arguments)
    known(options.only, TOPICS, parser)
    if not (options.other / "vitrail" / "__init__.py").is_file():
        parser.error(f"{options.other} is not a checkout: it has no folder vitrail")
    return command.run("versions", options, measure, partial(report, columns={"seconds": seconds}))


if __name__ == "__main__":
    sys.exit(main())

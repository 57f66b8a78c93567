"""What every topic's command line does alike: options, interruptions, the JSON file, the table, the exit status.

def measure(options: Namespace, records: list[Record]) -> Iterator[None]: ...    # yields when there is more to keep
sys.exit(run("loader", parser("loader", __doc__).parse_args(), measure, text))
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.machine import describe, headline, usable_cores, write_json
from benchmarks.pool import WorkerError
from benchmarks.rounds import Record, say


def names(value: str) -> tuple[str, ...]:
    """A list written with commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def known(given: Iterable[str], choices: Iterable[str], parser: argparse.ArgumentParser) -> None:
    """Ends the program if a name is not one of the choices, or none is given."""
    given, choices = tuple(given), tuple(choices)
    if unknown := [name for name in given if name not in choices] or ([] if given else ["nothing"]):
        parser.error(f"{', '.join(unknown)}: known are {', '.join(choices)}")


def positive(value: str) -> int:
    """A whole number, 1 or more."""
    if not value.isdigit() or not int(value):
        raise argparse.ArgumentTypeError(f"{value!r} must be a whole number, 1 or more")
    return int(value)


def file(value: str) -> Path:
    """A file that exists."""
    if not Path(value).is_file():
        raise argparse.ArgumentTypeError(f"{value} is not a file")
    return Path(value).resolve()


def parser(topic: str, doc: str | None, rounds: int | None = 5) -> argparse.ArgumentParser:
    """A topic's parser, with the options that all topics have. rounds: the default; None for a topic without rounds."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.{topic}", description=(doc or "").split("\n")[0])
    found.add_argument("--json", type=Path, metavar="FILE")
    if rounds:
        found.add_argument("--rounds", type=positive, default=rounds, help="in which everybody has a turn")
        found.add_argument("--minutes", type=float, help="no round begins that would end later, but the first")
        found.add_argument("--threads", type=positive, default=usable_cores())
        found.add_argument("--timeout", type=float, default=1800.0, help="seconds for one answer of one process")
    return found


def run(
    topic: str,
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace, list[Record]], Iterable[None]],
    text: Callable[[list[Record]], str],
) -> int:
    """Measures, writes what there is whenever `measure` yields, and prints the tables.

    Exit status: 0 done, 1 done but something failed, 2 bad input, 130 interrupted.
    """
    records: list[Record] = []
    document: dict[str, Any] = {"benchmark": topic, "machine": describe(), "settings": dict(vars(options))}
    document["records"], status = records, 0
    minutes = vars(options).get("minutes")
    options.until = time.perf_counter() + 60 * minutes if minutes else math.inf
    try:
        for _ in measure(options, records):
            write_json(options.json, document)
    except KeyboardInterrupt:
        say("interrupted; the tables hold what was finished")
        status = 130
    except WorkerError as error:
        say(str(error))
        status = 1
    except (OSError, ValueError) as error:
        print(f"benchmarks.{topic}: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if type(error).__name__ != "Interrupted":  # a run's own, which asked to be stopped; the import takes a second
            raise
        say(f"{error}; the tables hold what was finished, and the same command goes on")
        status = 130
    write_json(options.json, document)
    failures = [f"{r['case']}: {name} failed: {why}" for r in records for name, why in r["errors"].items()]
    print("\n\n".join([headline(document["machine"]), text(records), *failures]))
    return status or int(bool(failures))

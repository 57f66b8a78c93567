"""What preparing a model for inference is worth: Vitrail plain and in int8 beside timm, eager and compiled.

    python -m benchmarks.inference --json inference.json     six minutes on two cores; --repeats 3 for more
    python -m benchmarks.inference --cases Ti/16@224 --batches 1 --libraries timm,vitrail:plain,vitrail:int8

Interleaved rounds in fresh processes, as benchmarks/measure.py has them. The ratio is the first library's time divided
by the others': how many times faster than it they are. `vitrail` alone is the model as training has it, `vitrail:plain`
what predict and evaluate use. `vitrail evaluate --int8` measures what int8 loses.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks import command
from benchmarks.command import names
from benchmarks.measure import Setting, speeds
from benchmarks.rounds import Record, report
from benchmarks.throughput import COLUMNS, check, libraries

LIBRARIES = ("timm", "timm:compiled", "vitrail:plain", "vitrail:int8")
CASES = ("Ti/16@224", "S/16@224", "B/16@224")


def parse(arguments: Sequence[str] | None) -> Namespace:
    """The command line, checked."""
    parser = command.parser("inference", __doc__, rounds=3)
    libraries(parser, LIBRARIES, CASES)
    parser.add_argument("--batches", type=names, default=("1", "16"))
    options = parser.parse_args(arguments)
    check(options, parser)
    if not all(batch.isdigit() and int(batch) for batch in options.batches):
        parser.error(f"batches are {','.join(options.batches)}; they must be numbers such as 1,16")
    options.device = "cpu"
    return options


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Measures every case with every batch."""
    rows = [Setting(str(case), "forward", "eager", int(batch)) for batch in options.batches for case in options.cases]
    with tempfile.TemporaryDirectory(prefix="vitrail-benchmark-") as cache:
        options.cache = Path(cache)
        yield from speeds(options, records, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    return command.run("inference", parse(arguments), measure, partial(report, columns=COLUMNS))


if __name__ == "__main__":
    sys.exit(main())

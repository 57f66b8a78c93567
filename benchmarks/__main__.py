"""All benchmarks in sequence, with modest defaults.

They take about a quarter of an hour on two cores, and most of an hour with everything.

    python -m benchmarks                         start-up, weights, then eager speed and memory
    python -m benchmarks --json results/         the same, with a JSON file a topic in that folder
    python -m benchmarks --full --json results/  compiled too, and B/16 at 384
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import startup, throughput, weights

MODEST = ["--cases", "Ti/16@224,S/16@224,B/16@224", "--modes", "eager", "--rounds", "3"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The worst exit status of the parts; an interruption ends the whole."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--full", action="store_true", help="every case, pass and mode of the throughput benchmark")
    parser.add_argument("--json", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)

    def output(name: str) -> list[str]:
        return ["--json", str(options.json / name)] if options.json else []

    worst = startup.main(output("startup.json"))
    if worst == 130:
        return worst
    print()
    worst = max(worst, weights.main(["--rounds", "1", *output("weights.json")]))
    if worst == 130:
        return worst
    print()
    return max(worst, throughput.main([*([] if options.full else MODEST), *output("throughput.json")]))


if __name__ == "__main__":
    sys.exit(main())

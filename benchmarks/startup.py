"""Seconds until something is there: the command's help, the import, the first model; and the peers' imports.

    python -m benchmarks.startup --json startup.json
    python -m benchmarks.startup --rounds 9

Each program runs in a fresh interpreter, all of them once in each round in shuffled order, after one round that only
warms the file cache and writes the byte code. Figures are medians of wall time; differences are taken within a round.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, describe, headline, table, write_json

PROGRAMS: dict[str, list[str]] = {
    "python": ["-c", "pass"],
    "vitrail --help": ["-m", "vitrail", "--help"],
    "import torch": ["-c", "import torch"],
    "import torch, vitrail": ["-c", "import torch; import vitrail"],
    "vitrail.create('ViT-Ti/16')": ["-c", "import vitrail; vitrail.create('ViT-Ti/16')"],
    "import timm": ["-c", "import timm"],
    "timm.create_model(Ti/16)": ["-c", "import timm; timm.create_model('vit_tiny_patch16_224')"],
    "import transformers' ViT": ["-c", "from transformers import ViTForImageClassification"],
    "import torchvision": ["-c", "import torchvision"],
}
ADDED = ("import torch, vitrail", "import torch")
LIMITS = {"vitrail --help": 0.5, "vitrail adds": 0.3}


def wall_seconds(arguments: Sequence[str], timeout: float) -> float:
    """Seconds of one run; RuntimeError with what it printed when it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise RuntimeError(f"status {done.returncode}: {' '.join(tail)}")
    return seconds


def measure(rounds: int, timeout: float) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of every program in every round, and the reasons of those that fail."""
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    errors: dict[str, str] = {}
    order = random.Random(0)
    start = time.perf_counter()
    for number in range(rounds + 1):
        for name in order.sample(sorted(seconds), len(seconds)):
            try:
                taken = wall_seconds(PROGRAMS[name], timeout)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                errors[name] = str(error)
                del seconds[name]
                continue
            if number > 0:
                seconds[name].append(taken)
        gone = time.perf_counter() - start
        left = gone / (number + 1) * (rounds - number)
        stage = f"round {number} of {rounds}" if number else "warm-up round"
        print(f"start-up: {stage} done, about {left:.0f} s left", file=sys.stderr, flush=True)
    return seconds, errors


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median, least and most of each program, and what `import vitrail` adds to `import torch`."""
    series = {name: values for name, values in seconds.items() if values}
    if all(name in series for name in ADDED):
        both, torch_only = (series[name] for name in ADDED)
        series["vitrail adds"] = [a - b for a, b in zip(both, torch_only, strict=True)]
    return {
        name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
        for name, values in series.items()
    }


def text(document: dict[str, Any]) -> str:
    """The result as markdown."""
    rows = []
    for name, row in document["summary"].items():
        limit = f"{LIMITS[name]:.1f}" if name in LIMITS else ""
        rows.append([name, *(f"{row[key]:.2f}" for key in ("median", "least", "most")), limit])
    rows += [[name, "failed", "", "", ""] for name in document["errors"]]
    failures = [f"{name} failed: {message}" for name, message in document["errors"].items()]
    headers = ["start-up", "median s", "least", "most", "at most"]
    return "\n\n".join([headline(document["machine"]), table(headers, rows), *failures])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 done but something failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one program")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"rounds ({options.rounds}) must be 1 or more")
    machine = describe()
    try:
        seconds, errors = measure(options.rounds, options.timeout)
    except KeyboardInterrupt:
        return 130
    document = {
        "benchmark": "startup",
        "machine": machine,
        "settings": {"rounds": options.rounds, "programs": PROGRAMS},
        "seconds": seconds,
        "errors": errors,
        "summary": summary(seconds),
    }
    write_json(options.json, document)
    print(text(document))
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())

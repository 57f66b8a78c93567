"""Seconds until something is there: the command's help, a model, an answer, a step of training; and the imports.

    python -m benchmarks.startup --json startup.json
    python -m benchmarks.startup --rounds 9 --only predict,step

Each program runs in a fresh interpreter, all of them once in each round in shuffled order, after one round that only
warms the file cache and writes the byte code. Figures are medians of wall time; differences and ratios are taken
within a round. Weights and photographs are made here, random: nothing is fetched.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import weights
from benchmarks.machine import ROOT, describe, headline, table, write_json
from benchmarks.report import quartiles
from benchmarks.throughput import names
from benchmarks.training import draw_photographs, photographs

IMPORTS: dict[str, list[str]] = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import torch, vitrail": ["-c", "import torch; import vitrail"],
    "vitrail.create('ViT-Ti/16')": ["-c", "import vitrail; vitrail.create('ViT-Ti/16')"],
    "import timm": ["-c", "import timm"],
    "timm.create_model(Ti/16)": ["-c", "import timm; timm.create_model('vit_tiny_patch16_224')"],
    "import transformers' ViT": ["-c", "from transformers import ViTForImageClassification"],
    "import torchvision": ["-c", "import torchvision"],
}
TIMM_INFO = "import timm; print(sum(p.numel() for p in timm.create_model('vit_base_patch16_224').parameters()))"
STEP = "from pathlib import Path; from benchmarks import trainee; trainee.{name}(Path('{data}'))"
TOPICS = ("help", "imports", "info", "predict", "step")
# Ours -> timm's.
PEERS = {
    "vitrail info ViT-B/16": "timm: count B/16",
    "vitrail predict, Ti/16, one JPEG": "timm: predict, Ti/16, one JPEG",
    "first training step, Ti/16": "timm: first training step, Ti/16",
}
ADDED = ("import torch, vitrail", "import torch")
LIMITS = {"vitrail --help": 0.5, "vitrail adds": 0.3}


def programs(folder: Path, topics: Sequence[str]) -> dict[str, list[str]]:
    """name -> what the interpreter is given, with the files that it needs."""
    photos = draw_photographs(folder / "drawn", 16) if {"predict", "step"} & set(topics) else []
    (info, predict, step), (timm_info, timm_predict, timm_step) = PEERS, PEERS.values()
    found: dict[str, list[str]] = {}
    if "help" in topics:
        found["vitrail --help"] = ["-m", "vitrail", "--help"]
    if "imports" in topics:
        found |= IMPORTS
    if "info" in topics:
        found |= {info: ["-m", "vitrail", "info", "ViT-B/16"], timm_info: ["-c", TIMM_INFO]}
    if "predict" in topics:
        model, image = folder / "model", photos[0]
        weights.save_random("ViT-Ti/16", model)
        source = weights.RESULT + (weights.TIMM_FILE + weights.TIMM_ONE).format(model=model, image=image)
        found |= {predict: ["-m", "vitrail", "predict", str(model), str(image)], timm_predict: ["-c", source]}
    if "step" in topics:
        data = photographs(folder, folder / "drawn", 64)
        ours, theirs = (STEP.format(name=name, data=data) for name in ("first_step", "timms_first_step"))
        found |= {step: ["-c", ours], timm_step: ["-c", theirs]}
    return found


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


def measure(chosen: dict[str, list[str]], rounds: int, timeout: float) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of every program in every round, and the reasons of those that fail."""
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    errors: dict[str, str] = {}
    order = random.Random(0)
    start = time.perf_counter()
    for number in range(rounds + 1):
        for name in order.sample(sorted(seconds), len(seconds)):
            try:
                taken = wall_seconds(chosen[name], timeout)
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


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Median, least and most of each program, its ratio to timm's, and what `import vitrail` adds to `import torch`."""
    series = {name: values for name, values in seconds.items() if values}
    if all(name in series for name in ADDED):
        both, torch_only = (series[name] for name in ADDED)
        series["vitrail adds"] = [a - b for a, b in zip(both, torch_only, strict=True)]
    found: dict[str, dict[str, Any]] = {
        name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
        for name, values in series.items()
    }
    for ours, theirs in PEERS.items():
        if ours in series and theirs in series:
            of_rounds = [a / b for a, b in zip(series[ours], series[theirs], strict=True)]
            found[ours] |= {"ratio": statistics.median(of_rounds), "ratio_quartiles": quartiles(of_rounds)}
    return found


def text(document: dict[str, Any]) -> str:
    """The result as markdown."""
    rows = []
    for name, row in document["summary"].items():
        limit = f"{LIMITS[name]:.1f}" if name in LIMITS else ""
        ratio = ""
        if "ratio" in row:
            low, high = row["ratio_quartiles"]
            ratio = f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})"
        rows.append([name, *(f"{row[key]:.2f}" for key in ("median", "least", "most")), ratio, limit])
    rows += [[name, "failed", "", "", "", ""] for name in document["errors"]]
    failures = [f"{name} failed: {message}" for name, message in document["errors"].items()]
    headers = ["start-up", "median s", "least", "most", "time / timm's (quartiles)", "at most"]
    return "\n\n".join([headline(document["machine"]), table(headers, rows), *failures])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 done but something failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", type=names, default=TOPICS, help=f"of {','.join(TOPICS)}")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one program")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"rounds ({options.rounds}) must be 1 or more")
    if unknown := [name for name in options.only if name not in TOPICS]:
        parser.error(f"only: {', '.join(unknown)}; known are {', '.join(TOPICS)}")
    machine = describe()
    try:
        with tempfile.TemporaryDirectory() as folder:
            chosen = programs(Path(folder), options.only)
            seconds, errors = measure(chosen, options.rounds, options.timeout)
    except KeyboardInterrupt:
        return 130
    document = {
        "benchmark": "startup",
        "machine": machine,
        "settings": {"rounds": options.rounds, "programs": chosen},
        "seconds": seconds,
        "errors": errors,
        "summary": summary(seconds),
    }
    write_json(options.json, document)
    print(text(document))
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())

"""CIFAR-10 from scratch with our Trainer, how good in so many minutes; `python -m benchmarks.gpu --cifar10 DATA`.

Our recipe for it (vitrail/recipes/small.py) with larger batches and compiled blocks. A first short run says how fast
the machine is, and compiles; the second is as long as the rest of the time allows, and its schedule ends with it. All
of it counts: compiling, evaluating, writing. Nothing was tuned on a GPU.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import describe, headline, table, write_json

if TYPE_CHECKING:
    from vitrail.run import Run

BATCH, RATE = 512, 2e-3  # the recipe's rate for 128 images times the root of four
TRIAL, SETTLED = 150, 50  # steps of the first run, and those that are not counted
SHARE = 0.9  # of the time that is left, for steps; the rest is evaluation, the end, and what was misjudged


def run_of(data: str, device: str, workers: int, tiny: bool) -> Run:
    """The recipe for a device that is fast; its length is not said yet."""
    from vitrail.recipes.small import cifar10

    run = cifar10(data)
    run = replace(
        run,
        batch=BATCH,
        optim=replace(run.optim, lr=RATE),
        compile=True,
        device=device,
        workers=workers,
        evaluate_every="20%",
        checkpoint_every="100%",
    )
    if tiny:
        model = replace(run.model, width=16, depth=1, heads=2, mlp_dim=32)
        run = replace(run, model=model, batch=8, compile=False, log_every=2)
    return run


def train(run: Run, folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The last evaluation's figures, and the lines of the log."""
    from vitrail import run as runs
    from vitrail.train import Trainer

    runs.write(run, folder)
    result = Trainer(run, folder).fit()
    return result, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def speed(lines: list[dict[str, Any]], settled: int) -> float:
    """Images a second of the lines after so many steps, each of which is of as many steps."""
    seconds = [
        1 / line["images_per_second"] for line in lines if line.get("images_per_second") and line["step"] > settled
    ]
    return len(seconds) / sum(seconds)


def measure(data: str, minutes: float, device: str, workers: int, tiny: bool) -> dict[str, Any]:
    """The whole: trial, length, training."""
    start = time.perf_counter()
    trial, settled = (8, 2) if tiny else (TRIAL, SETTLED)
    with tempfile.TemporaryDirectory(prefix="vitrail-benchmark-") as place:
        run = run_of(data, device, workers, tiny)
        _, lines = train(replace(run, duration=f"{trial} steps"), Path(place) / "trial")
        found = speed(lines, settled)
        left = 60 * minutes - (time.perf_counter() - start)
        steps = max(10, int(SHARE * left * found / run.batch))
        result, lines = train(replace(run, duration=f"{steps} steps"), Path(place) / "run")
    curve = [(line["step"], line["evaluation"]["accuracy"]) for line in lines if "evaluation" in line]
    return {
        "seconds": time.perf_counter() - start,
        "steps": steps,
        "images": steps * run.batch,
        "batch": run.batch,
        "trial_images_per_second": found,
        "images_per_second": speed(lines, settled),
        "accuracy": result["accuracy"],
        "best": max(accuracy for _, accuracy in curve),
        "curve": curve,
    }


def text(document: dict[str, Any]) -> str:
    """The result as markdown."""
    found = document["result"]
    headers = ["data", "minutes asked", "minutes taken", "images", "img/s", "accuracy at the end", "best"]
    row = [document["data"], f"{document['minutes']:g}", f"{found['seconds'] / 60:.1f}", f"{found['images']:,}"]
    row += [f"{found['images_per_second']:.0f}", f"{found['accuracy']:.2%}", f"{found['best']:.2%}"]
    return f"{headline(document['machine'])}\n\n{table(headers, [row])}"


def main(data: str, minutes: float, device: str, workers: int, tiny: bool, file: Path | None) -> int:
    """Exit status: 0 done, 2 bad input, 130 interrupted."""
    from vitrail.train import Interrupted

    document: dict[str, Any] = {"benchmark": "cifar10", "data": Path(data).name, "minutes": minutes, "device": device}
    document["machine"] = describe()
    try:
        document["result"] = measure(data, minutes, device, workers, tiny)
    except Interrupted:
        return 130
    except ValueError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    write_json(file, document)
    print(text(document))
    return 0

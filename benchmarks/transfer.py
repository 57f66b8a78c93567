"""Does what a model learned on one data set help on another? The paper's transfer, at a size of minutes.

    python -m benchmarks.transfer --source CIFAR10.tar.gz --target imagenette224-part --runs /tmp/transfer
    python -m benchmarks.transfer --source RUN --target imagenette224-part

A small ViT is trained on the source at 32 px, then fine-tuned on the target at 64 px (positions resampled, a zero
head). For comparison the same model is trained on the target from scratch: as long, with the same augmentation, each
with a learning rate of its own. Three seeds of each, in turn. A run that is there is not done again, so that an
interruption loses little. A source that is a run, such as the one that `benchmarks.accuracy --keep` leaves, is taken as
it is, with its shape.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import command
from benchmarks.command import positive
from benchmarks.machine import table
from benchmarks.rounds import Record, say
from benchmarks.timm_script import Shape
from benchmarks.trainee import run_of

if TYPE_CHECKING:
    from vitrail.run import Run

SHAPE = Shape(32, 8, 128, 6, 4)  # 16 patches
HOW: dict[str, Any] = {"smoothing": 0.1, "warmup": "5%", "device": "auto", "precision": "auto"}


def pretraining(data: str, epochs: int) -> Run:
    """The run on the source, at 32 px."""
    augment = {"crop": "shift", "shift": 4, "flip": 0.5}
    often = {"checkpoint_every": "1 epoch", "log_every": 100}
    return run_of(SHAPE, data, augment, 1e-3, batch=64, duration=f"{epochs} epochs", **often, **HOW)


def on_target(data: str, epochs: int, seed: int, source: Run, start: str | None) -> Run:
    """The run on the target, at 64 px (64 patches), with the source's model and normalisation. start: its weights."""
    # Weights that know something want a lower rate; neither has been tuned.
    rate, augment = 1e-3 if start is None else 5e-4, {"crop": "inception", "scale": (0.35, 1.0), "flip": 0.5}
    often = {"evaluate_every": "100%", "checkpoint_every": "100%"}
    run = run_of(SHAPE, data, augment, rate, batch=32, duration=f"{epochs} epochs", seed=seed, **often, **HOW)
    return replace(
        run,
        model=replace(source.model, image_size=(64, 64)),
        preprocessing=replace(source.preprocessing, image_size=(64, 64)),
        start=start,
    )


def finished(run: Run, folder: Path) -> dict[str, Any]:
    """The run's metrics and seconds: trained now, or read where it was trained before."""
    from vitrail import run as runs
    from vitrail.data.sources.open import open_splits
    from vitrail.train import Trainer

    result = folder / "result.json"
    if not result.is_file():
        if not (folder / "run.json").is_file():
            runs.write(run.task.adapt(run, open_splits(run.data, run.task.needs).train), folder)
        started = time.perf_counter()
        metrics = Trainer(runs.read(folder), folder).fit()
        result.write_text(json.dumps({"metrics": metrics, "seconds": time.perf_counter() - started}))
    return json.loads(result.read_text())


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Trains all runs; yields after each."""
    from vitrail import run as runs

    source = Path(options.source)
    if not (source / "run.json").is_file():
        source = options.runs / "pretraining"
        finished(pretraining(options.source, options.source_epochs), source)
    pretrained = runs.read(source)
    for seed in range(options.seeds):
        for name, start in (("fine-tuned", str(source)), ("from scratch", None)):
            run = on_target(options.target, options.epochs, seed, pretrained, start)
            result = finished(run, options.runs / f"{name}-{options.epochs}-seed-{seed}")
            found = {"accuracy": result["metrics"]["accuracy"], "seconds": result["seconds"], "errors": {}}
            records.append({"case": name, "seed": seed, **found})
            say(f"seed {seed}, {name}: {found['accuracy']:.1%}")
            yield


def text(records: list[Record]) -> str:
    """The table, and how far fine-tuning is ahead."""
    found: dict[str, list[float]] = {}
    for record in records:
        found.setdefault(record["case"], []).append(record["accuracy"])
    rows = [
        [name, ", ".join(f"{accuracy:.1%}" for accuracy in several), f"{statistics.mean(several):.1%}"]
        for name, several in found.items()
    ]
    ahead = [100 * (ours - other) for ours, other in zip(*found.values(), strict=False)] if len(found) == 2 else []
    by = f"Fine-tuning is ahead by {statistics.mean(ahead):+.1f} points." if ahead else ""
    return f"{table(['', 'by seed', 'mean'], rows)}\n\n{by}".rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser = command.parser("transfer", __doc__, rounds=None)
    parser.add_argument("--source", required=True, metavar="DATA", help="what is learned first, or a run that did")
    parser.add_argument("--target", required=True, metavar="DATA", help="photographs in class folders")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/transfer"), metavar="FOLDER", help="where they are kept"
    )
    parser.add_argument("--source-epochs", type=positive, default=15)
    parser.add_argument("--epochs", type=positive, default=12)
    parser.add_argument("--seeds", type=positive, default=3)
    return command.run("transfer", parser.parse_args(arguments), measure, text)


if __name__ == "__main__":
    sys.exit(main())

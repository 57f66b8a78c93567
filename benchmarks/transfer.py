"""Does what a model learned on one data set help on another? The paper's transfer, at a size of minutes.

    python -m benchmarks.transfer --source CIFAR10.tar.gz --target imagenette224-part --runs /tmp/transfer
    python -m benchmarks.transfer --source RUN --target imagenette224-part --runs /tmp/transfer

A small ViT is trained on the source at 32 px, then fine-tuned on the target at 64 px (positions resampled, a zero
head). For comparison the same model is trained on the target from scratch: as long, with the same augmentation, each
with a learning rate of its own. Three seeds of each, in turn. A run that is there is not done again, so that an
interruption loses little. A source that is a run, such as the one that `benchmarks.accuracy --keep` leaves, is taken as
it is, with its shape.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from vitrail import run as runs
from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.open import Data, open_splits
from vitrail.models import vit
from vitrail.optim.build import Config
from vitrail.optim.schedule import Schedule
from vitrail.recipes import REMOVED
from vitrail.run import Run
from vitrail.tasks.classify import Config as TaskConfig
from vitrail.train import Trainer

HALF = (0.5, 0.5, 0.5)
SHAPE = {"patch_size": (8, 8), "width": 128, "depth": 6, "heads": 4, "mlp_dim": 512, "classes": 10}


def pretraining(data: str, epochs: int) -> Run:
    """On the source, at 32 px: 16 patches."""
    return Run(
        recipe="pretraining",
        model=vit.Config((32, 32), **SHAPE),
        preprocessing=Preprocessing((32, 32), HALF, HALF),
        data=Data(data),
        augment=Augment(crop="shift", shift=4, flip=0.5),
        task=TaskConfig(smoothing=0.1),
        optim=Config(lr=1e-3, weight_decay=0.05, schedule=Schedule("cosine", warmup="5%")),
        batch=64,
        duration=f"{epochs} epochs",
        checkpoint_every="1 epoch",
        log_every=100,
    )


def on_target(data: str, epochs: int, seed: int, source: Run, start: str | None) -> Run:
    """On the target, at 64 px: 64 patches; the model and normalisation of the source; from weights or from scratch."""
    # Weights that know something want a lower rate; neither has been tuned.
    rate = 1e-3 if start is None else 5e-4
    return Run(
        recipe="scratch" if start is None else "finetuned",
        model=replace(source.model, image_size=(64, 64)),
        preprocessing=replace(source.preprocessing, image_size=(64, 64)),
        data=Data(data),
        augment=Augment(crop="inception", scale=(0.35, 1.0), flip=0.5),
        task=TaskConfig(smoothing=0.1),
        optim=Config(lr=rate, weight_decay=0.05, schedule=Schedule("cosine", warmup="5%")),
        start=start,
        batch=32,
        duration=f"{epochs} epochs",
        evaluate_every="100%",
        checkpoint_every="100%",
        seed=seed,
    )


def finished(run: Run, folder: Path) -> dict[str, Any]:
    """The run's metrics and seconds: trained now, or read where it was trained before."""
    result = folder / "result.json"
    if not result.is_file():
        if (folder / "run.json").is_file():
            trainer = Trainer(runs.read(folder), folder)
        else:
            trainer = Trainer(for_data(run, open_splits(run.data)[0]), folder)
            runs.write(trainer.run, folder)
        started = time.perf_counter()
        metrics = trainer.fit()
        result.write_text(json.dumps({"metrics": metrics, "seconds": time.perf_counter() - started}))
    return json.loads(result.read_text())


def is_run(path: str) -> bool:
    """Whether it is a run's folder, and not data."""
    return (Path(path) / "run.json").is_file()


def accuracy(folder: Path) -> float:
    """What the run's last evaluation said."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["evaluation"]["accuracy"] for line in lines if "evaluation" in line][-1]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All runs, and what came of them."""
    source = Path(options.source) if is_run(options.source) else options.runs / "pretraining"
    if source == options.runs / "pretraining":
        finished(pretraining(options.source, options.source_epochs), source)
    first, pretrained = accuracy(source), runs.read(source)
    found: dict[str, list[float]] = {"finetuned": [], "scratch": []}
    seconds: dict[str, list[float]] = {"finetuned": [], "scratch": []}
    for seed in range(options.seeds):
        for name, start in (("finetuned", str(source)), ("scratch", None)):
            run = on_target(options.target, options.epochs, seed, pretrained, start)
            result = finished(run, options.runs / f"{name}-{options.epochs}-seed-{seed}")
            found[name].append(result["metrics"]["accuracy"])
            seconds[name].append(result["seconds"])
            print(f"seed {seed}, {name}: {found[name][-1]:.1%}", file=sys.stderr, flush=True)
    differences = [a - b for a, b in zip(found["finetuned"], found["scratch"], strict=True)]
    return {
        "machine": describe(),
        "pretraining": first,
        "accuracy": found,
        "seconds": seconds,
        "difference": {"mean": statistics.mean(differences), "each": differences},
    }


def text(document: dict[str, Any]) -> str:
    """The table."""
    lines = [f"pre-trained on the source: {document['pretraining']:.1%}"]
    for name, values in document["accuracy"].items():
        each = ", ".join(f"{value:.1%}" for value in values)
        lines.append(f"{name:10} {statistics.mean(values):.1%}   ({each})")
    return "\n".join([*lines, f"difference {document['difference']['mean']:+.1%}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--source", required=True, metavar="DATA", help="what is learned first, such as CIFAR-10, or a run"
    )
    parser.add_argument("--target", required=True, metavar="DATA", help="photographs in class folders")
    parser.add_argument("--runs", type=Path, required=True, metavar="FOLDER", help="where the runs are kept")
    parser.add_argument("--source-epochs", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        document = measure(options)
    except ValueError as error:
        print(f"benchmarks.transfer: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    print(text(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Accuracy and wall time of a whole training from scratch, ours beside timm's script.

    python -m benchmarks.accuracy cifar10 --data cifar10.tar.gz --timm-script train.py --minutes 60 --json cifar10.json
    python -m benchmarks.accuracy cifar10 --data FOLDER --timm-script train.py --epochs 20 --side-by-side

The same small ViT, files, crops, flips, smoothing, AdamW, clipping, schedule and number of steps, in fp32 on the CPU;
each library has its own initial weights and its own order of the images. Both see the 10,000 test images now and then,
for the curve; the result is what they say after the last epoch. Nothing was tuned on them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import command
from benchmarks.command import file, positive
from benchmarks.jobs import Curve, Job, Recipe, run_all, timms_curve
from benchmarks.machine import table, usable_cores
from benchmarks.photographs import unpacked
from benchmarks.rounds import Record, say, steady
from benchmarks.timm_script import Shape
from benchmarks.trainee import Case, bare, run_of

if TYPE_CHECKING:
    from vitrail.run import Run

LOADING = 1.15  # what reading and augmenting add to a bare step, about
OURS = (
    "import sys, pathlib; from vitrail import run, train; "
    "folder = pathlib.Path(sys.argv[1]); train.Trainer(run.read(folder), folder).fit()"
)


# An hour of a laptop: 16 tokens, 1.2 M parameters, average pooling. Patch 4 would have 64 tokens and see a quarter of
# the images in the time.
SHAPE, MEAN, STD = Shape(32, 8, 128, 6, 4, pool="avg"), (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
RECIPES = {"cifar10": Recipe(SHAPE, MEAN, STD, lr=1e-3, batch=100, scale=(0.7, 1.0))}


def tenth(epochs: int) -> int:
    """Epochs of linear warm-up, before the cosine, and between evaluations."""
    return max(1, epochs // 10)


def our_run(recipe: Recipe, data: Path, epochs: int, per_epoch: int, seed: int) -> Run:
    """The recipe as a Run. per_epoch: steps of an epoch; what is left of the images is dropped, as timm does."""
    often = f"{tenth(epochs) * per_epoch} steps"
    augment = {"crop": "inception", "scale": recipe.scale, "flip": 0.5}
    how = {
        "mean": recipe.mean,
        "std": recipe.std,
        "smoothing": recipe.smoothing,
        "warmup": often,
        "batch": recipe.batch,
    }
    length = {"duration": f"{epochs * per_epoch} steps", "evaluate_every": often}
    return run_of(recipe.shape, data, augment, recipe.lr, seed=seed, checkpoint_every=often, **how, **length)


def timm_words(recipe: Recipe, options: Namespace, data: Path, output: Path, epochs: int) -> list[str]:
    """The recipe as a command of timm's script."""
    every = {"val_interval": tenth(epochs), "workers": options.workers, "seed": options.seed}
    return recipe.timm(options.timm_script, data, output, epochs, tenth(epochs), **every)


def our_curve(folder: Path, per_epoch: int) -> Curve:
    """The evaluations in a run's folder."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"] // per_epoch, line["evaluation"]["accuracy"]) for line in lines if "evaluation" in line]


def epochs_in(recipe: Recipe, minutes: float, train_images: int, test_images: int, threads: int) -> int:
    """How many epochs, with ten evaluations, fit into the time; measured on a bare loop."""
    import torch

    torch.set_num_threads(threads)
    case = Case(recipe.shape, recipe.batch, warm=2, steps=6)
    seconds = LOADING * steady(bare(case, Path(), case.steps, 0)["steps"], case.batch, case.warm)
    left = 60 * minutes - 10 * test_images * seconds / 3
    return max(2, int(left / (train_images * seconds)))


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Trains both, from the archive to the two curves."""
    from vitrail import run

    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        data = unpacked(options.data, folder / "data")
        images, tests = (sum(path.is_file() for path in (data / name).rglob("*")) for name in ("train", "test"))
        threads = max(1, options.threads // 2) if options.side_by_side else options.threads
        recipe = RECIPES[options.data_set]
        epochs = options.epochs or epochs_in(recipe, options.minutes, images, tests, threads)
        per_epoch = images // recipe.batch
        say(f"{images:,} images, {tests:,} to test on, {epochs} epochs of {per_epoch} steps")
        ours, theirs = folder / "vitrail", folder / "timm"
        run.write(our_run(recipe, data, epochs, per_epoch, options.seed), ours)
        read, words = partial(our_curve, per_epoch=per_epoch), [sys.executable, "-c", OURS, str(ours)]
        jobs = [Job("vitrail", options.seed, words, ours, read)]
        jobs += [Job("timm", options.seed, timm_words(recipe, options, data, theirs, epochs), theirs, timms_curve)]
        cores = sorted(os.sched_getaffinity(0))[: options.threads]
        run_all(jobs, [cores[:threads], cores[threads:]] if options.side_by_side else [cores])
        records += [job.record() | {"epochs": epochs, "threads": threads} for job in jobs]
        yield


def text(records: list[Record]) -> str:
    """The table."""
    rows = []
    for record in records:
        accuracies = [accuracy for _, accuracy in record["curve"]] or [float("nan")]
        cells = [f"{accuracies[-1]:.2%}", f"{max(accuracies):.2%}", f"{record['seconds']:.0f}"]
        rows.append([record["runner"], str(record["epochs"]), str(record["threads"]), *cells])
    return table(["library", "epochs", "threads", "accuracy at the end", "best on the way", "seconds"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser = command.parser("accuracy", __doc__, rounds=None)
    parser.add_argument("data_set", choices=list(RECIPES))
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help="archive or folder of train/, test/")
    parser.add_argument("--timm-script", type=file, required=True, metavar="PATH", help="its train.py")
    parser.add_argument("--minutes", type=float, default=60.0, help="for each of the two; decides the epochs")
    parser.add_argument("--epochs", type=positive, help="instead of minutes")
    parser.add_argument("--threads", type=positive, default=usable_cores(), help="of both together, side by side")
    parser.add_argument("--side-by-side", action="store_true", help="at the same time, each on half of the cores")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images for timm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keeps both runs there, for benchmarks.transfer")
    options = parser.parse_args(arguments)
    if options.epochs == 1:
        parser.error("epochs (1) must be 2 or more: the first is the warm-up")
    return command.run("accuracy", options, measure, text)


if __name__ == "__main__":
    sys.exit(main())

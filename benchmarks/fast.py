"""Time to accuracy on small images: our `fast` recipe, a bare AdamW loop, and timm's script.

    python -m benchmarks.fast fashion_mnist --data fashion-mnist --timm-script train.py --json fast.json
    python -m benchmarks.fast cifar10 --data cifar10.tar.gz --timm-script train.py --seeds 0 --side-by-side

Every runner is a process of its own, from its start to its last evaluation on the test images, one after the other on
all cores, or (--side-by-side) each on a core of its own. timm's script and the bare loop train the same model; nothing
was tuned for the seeds that are shown. The bare loop's cosine ends when its time does.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.command import file
from benchmarks.jobs import CLIP, DECAY, Job, Recipe, printed, run_all, timms_curve
from benchmarks.machine import table
from benchmarks.photographs import unpacked
from benchmarks.rounds import Record, ratio
from benchmarks.timm_script import Shape


@dataclass(frozen=True)
class Setting:
    """A data set: how the peers train, how long `fast` does, and by how many pixels the bare loop shifts.

    epochs: of timm's script, which took 27 minutes of one core; its crops are mild, because those learn faster.
    """

    recipe: Recipe
    durations: tuple[str, ...]
    epochs: int
    shift: int


MILD = (0.8, 1.0)
FASHION = Recipe(Shape(28, 7, 128, 4, 4, channels=1), (0.286,), (0.353,), lr=1.5e-3, batch=64, scale=MILD)
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
CIFAR = Recipe(Shape(32, 8, 128, 6, 4), MEAN, STD, lr=1e-3, batch=64, scale=MILD)
SETTINGS = {
    "fashion_mnist": Setting(FASHION, ("2.2 epochs", "3.2 epochs"), epochs=8, shift=1),
    "cifar10": Setting(CIFAR, ("2.2 epochs",), epochs=6, shift=2),
}


def bare(name: str, data: str, seconds: float, seed: int) -> float:
    """The loop that most people write: AdamW, cosine, flips and shifts, all images in memory. Returns the accuracy."""
    import math

    import torch
    import torch.nn.functional as F

    from vitrail.models.vit import ViT

    recipe, by, began = SETTINGS[name].recipe, SETTINGS[name].shift, time.perf_counter()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(seed)
    (images, targets), (tests, truths) = (tensors(data, recipe, split) for split in ("train", "val"))
    model = ViT(recipe.shape.vitrail())
    decayed = {n: p for n, p in model.named_parameters() if p.ndim > 1 and n.endswith("weight")}
    others = [p for n, p in model.named_parameters() if n not in decayed]
    groups = [{"params": [*decayed.values()], "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
    size, order = recipe.shape.size, torch.randperm(len(images))
    rows, place = torch.arange(size), 0
    while (gone := (time.perf_counter() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(1.0, 20 * gone) * (1 + math.cos(math.pi * gone)) / 2
        if place + recipe.batch > len(order):
            order, place = torch.randperm(len(images)), 0
        chosen, place = order[place : place + recipe.batch], place + recipe.batch
        x = F.pad(images[chosen], (by,) * 4)
        down, across = (torch.randint(0, 2 * by + 1, (len(chosen), 1)) + rows for _ in "yx")
        count, channels = torch.arange(len(chosen))[:, None, None, None], torch.arange(x.shape[1])[:, None, None]
        x = x[count, channels, down[:, None, :, None], across[:, None, None, :]]
        x = torch.where(torch.rand(len(chosen), 1, 1, 1) < 0.5, x.flip(-1), x)
        loss = F.cross_entropy(model(x), targets[chosen], label_smoothing=recipe.smoothing)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).sum() for x, y in zip(tests.split(500), truths.split(500), strict=True)]
    return int(sum(right)) / len(tests)


def batches(data: str, recipe: Recipe, split: str) -> Iterator[Any]:
    """All images of a split in order, uint8, with their classes."""
    from vitrail.data.images.preprocessing import Preprocessing
    from vitrail.data.loader import evaluation
    from vitrail.data.sources.open import Data, open_splits
    from vitrail.tasks import ClassifyConfig

    source = getattr(open_splits(Data(data)), split)
    how = Preprocessing((recipe.shape.size,) * 2, recipe.mean, recipe.std)
    yield from evaluation(source, how, partial(ClassifyConfig().collate, source=source), batch=500)


def tensors(data: str, recipe: Recipe, split: str) -> tuple[Any, Any]:
    """All images, normalised, and their classes."""
    import torch

    found = list(batches(data, recipe, split))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (recipe.mean, recipe.std))
    images = torch.cat([batch["images"] for batch in found]).float().div_(255).sub_(mean).div_(std)
    return images, torch.cat([batch["targets"] for batch in found])


def folders(data: Path, folder: Path, recipe: Recipe) -> Path:
    """The data as train/ and test/ with a folder for each class, which is what timm's script reads."""
    from PIL import Image

    if data.is_file() or (data / "train").is_dir():
        return unpacked(data, folder)
    for split, ours in (("train", "train"), ("test", "val")):
        for batch in batches(str(data), recipe, ours):
            for index, target, image in zip(batch["indices"], batch["targets"], batch["images"], strict=True):
                place = folder / split / f"{int(target):03d}"
                place.mkdir(parents=True, exist_ok=True)
                image = image[0] if len(image) == 1 else image.permute(1, 2, 0)
                Image.fromarray(image.numpy()).save(place / f"{int(index):06d}.png")
    return folder


def jobs_of(options: Namespace, folder: Path) -> list[Job]:
    """timm's script once, then each seed of the others."""
    setting, found = SETTINGS[options.data_set], []
    data = unpacked(options.data, folder / "data") if options.data.is_file() else options.data
    if not data.exists():
        raise ValueError(f"{data} does not exist; name a folder of images, or an archive")
    if options.timm_script:
        plain, out = folders(data, folder / "folders", setting.recipe), folder / "timm"
        epochs = options.epochs or setting.epochs
        words = setting.recipe.timm(options.timm_script, plain, out, epochs, 1, workers=1, seed=0)
        found.append(Job("timm", 0, words, out, timms_curve))
    for seed in options.seeds:
        for seconds in options.bare_seconds:
            words = [sys.executable, "-m", "benchmarks.fast", "--worker", options.data_set, str(data)]
            out = folder / f"bare-{seconds:g}-{seed}"
            found.append(Job(f"bare, {seconds:g} s", seed, [*words, str(seconds), str(seed)], out, printed))
        for duration in options.durations or setting.durations:
            out = folder / f"fast-{duration.replace(' ', '-')}-{seed}"
            words = [sys.executable, "-m", "vitrail", "train", "fast", "--data", str(data), "--json"]
            words += ["--duration", duration, "--seed", str(seed), "--out", str(out)]
            found.append(Job(f"fast, {duration}", seed, words, out, printed))
    return found


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Runs every job to its end."""
    cores = [[core] for core in sorted(os.sched_getaffinity(0))] if options.side_by_side else [[]]
    with tempfile.TemporaryDirectory() as folder:
        jobs = jobs_of(options, Path(folder).resolve())
        try:
            run_all(jobs, cores)
        finally:
            records += [job.record() for job in jobs]
    yield


def text(records: list[Record]) -> str:
    """The table; each `fast` beside each peer: the ratio of their times, seed by seed, and the difference in points."""
    runners: dict[str, dict[int, Record]] = {}
    for record in records:
        if record["curve"]:
            runners.setdefault(record["runner"], {})[record["seed"]] = record
    peers = [name for name in runners if not name.startswith("fast")]
    rows = []
    for name, by_seed in runners.items():
        seconds, accuracies = [r["seconds"] for r in by_seed.values()], [r["curve"][-1][1] for r in by_seed.values()]
        cells = [name, ", ".join(f"{a:.2%}" for a in accuracies), f"{statistics.median(accuracies):.2%}"]
        cells.append(", ".join(f"{s:.0f}" for s in seconds))
        for peer in peers:
            both = [seed for seed in by_seed if seed in runners[peer]]
            times = ratio(*([who[seed]["seconds"] for seed in both] for who in (by_seed, runners[peer])))
            ahead = statistics.median(accuracies) - statistics.median(r["curve"][-1][1] for r in runners[peer].values())
            cells.append("" if name in peers else f"{times} of its time, {100 * ahead:+.2f} points")
        rows.append(cells)
    return table(["runner", "accuracy by seed", "median", "seconds", *(f"beside {peer}" for peer in peers)], rows)


def parser() -> ArgumentParser:
    """The command line."""
    found = command.parser("fast", __doc__, rounds=None)
    found.add_argument("data_set", choices=list(SETTINGS))
    found.add_argument("--data", type=Path, required=True, metavar="PATH", help="MNIST's files, or train/ and test/")
    found.add_argument("--timm-script", type=file, metavar="PATH", help="its train.py")
    found.add_argument("--epochs", type=int, help="of timm's script")
    found.add_argument("--bare-seconds", type=float, nargs="*", default=[400.0])
    found.add_argument("--durations", nargs="*", help='of `fast`, such as "2 epochs"')
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found.add_argument("--side-by-side", action="store_true", help="each runner on one core, as many as there are")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["--worker"]:
        name, data, seconds, seed = arguments[1:]
        print(json.dumps({"accuracy": bare(name, data, float(seconds), int(seed))}))
        return 0
    return command.run("fast", parser().parse_args(arguments), measure, text)


if __name__ == "__main__":
    sys.exit(main())

"""Images a second of the data path alone: ours, from files and packed, beside timm's loader and torchvision's folders.

    python -m benchmarks.loader --json loader.json
    python -m benchmarks.loader --data FOLDER_OF_PHOTOGRAPHS --rounds 5

Random crops to 224 px, bicubic, mirrored, of 500 JPEGs, in batches of 64: timm's default loader (worker processes,
Pillow, normalised after collation), an ImageFolder behind torch's DataLoader, and ours, which hands out bytes; ours,
too, from a store that `vitrail data pack` made, and with two processes instead of threads. Each measurement is a
fresh process with two workers, all of them once a round in shuffled order. What counts is the ratio within a round.
What packed images differ in is said, too: in evaluation, and for the same random crops.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, busy_seconds, describe, headline, table, write_json
from benchmarks.pool import KEEP_FREED, environment
from benchmarks.report import quartiles
from benchmarks.training import photographs

SIZE, BATCH, WORKERS, IMAGES = 224, 64, 2, 500
HALF = (0.5, 0.5, 0.5)
EPOCHS = 3  # the first starts processes and fills caches
TARGETS = "Aims, as multiples of timm's images/s: 2.5 from files, 8 packed."


def timm_loader(data: Path) -> Iterable[int]:
    """timm's `create_loader`, with colour jitter off and the same crops."""
    import torch
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=str(data / "train")),
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        scale=(0.08, 1.0),
        hflip=0.5,
        color_jitter=None,
        interpolation="bicubic",
        mean=HALF,
        std=HALF,
        num_workers=WORKERS,
        device=torch.device("cpu"),
    )
    for _ in range(EPOCHS):
        yield from (len(images) for images, _ in loader)
        yield 0


def image_folder(data: Path) -> Iterable[int]:
    """torchvision's ImageFolder and transforms behind torch's DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.RandomResizedCrop(SIZE, interpolation=bicubic), transforms.RandomHorizontalFlip()]
    images = datasets.ImageFolder(
        str(data / "train"), transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(HALF, HALF)])
    )
    loader = DataLoader(images, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, drop_last=True)
    for _ in range(EPOCHS):
        yield from (len(batch) for batch, _ in loader)
        yield 0


def ours(data: Path, workers: int) -> Iterable[int]:
    """Our loader, whole batches of bytes; 0 workers are two threads."""
    from vitrail.data.images.augment import Augment
    from vitrail.data.images.preprocessing import Preprocessing
    from vitrail.data.loader import Training, stream
    from vitrail.data.sources.open import Data, find_splits

    how = Preprocessing((SIZE, SIZE), HALF, HALF, interpolation="bicubic")
    source = find_splits(Data(str(data)))["train"]
    training = Training(source, how, Augment("inception", flip=0.5), batch=BATCH, seed=0)
    steps = len(source) // BATCH
    for place, batch in enumerate(stream(training, training.keys(0, EPOCHS * steps), workers), 1):
        yield len(batch["images"])
        if place % steps == 0:
            yield 0


HOW = {
    "vitrail": lambda data, packed: ours(data, 0),
    "vitrail, 2 processes": lambda data, packed: ours(data, WORKERS),
    "vitrail packed": lambda data, packed: ours(packed, 0),
    "vitrail packed, 2 processes": lambda data, packed: ours(packed, WORKERS),
    "timm": lambda data, packed: timm_loader(data),
    "ImageFolder": lambda data, packed: image_folder(data),
}


def rate(batches: Iterator[int] | Iterable[int]) -> float:
    """Images a second from the end of the first epoch to that of the last."""
    ends, images = [], 0
    for count in batches:
        images += count if ends else 0
        if not count:
            ends.append(time.perf_counter())
    return images / (ends[-1] - ends[0])


def difference(data: Path, packed: Path, steps: int = IMAGES // BATCH) -> dict[str, float]:
    """Mean grey levels between the two paths: in evaluation (256 px, the middle 224), and for the same random crops."""
    from vitrail.data.images.augment import Augment
    from vitrail.data.images.preprocessing import Preprocessing
    from vitrail.data.loader import Training, evaluation
    from vitrail.data.sources.open import Data, find_splits

    how = Preprocessing((SIZE, SIZE), HALF, HALF, interpolation="bicubic")
    both = [
        Training(find_splits(Data(str(place)))["train"], how, Augment("inception", flip=0.5), batch=BATCH, seed=0)
        for place in (data, packed)
    ]
    middle = replace(how, resize="crop", crop_fraction=0.875)
    found = {"evaluation": zip(*(evaluation(one.images.source, how=middle, batch=BATCH) for one in both), strict=True)}
    found["crops"] = ((both[0][step].batch, both[1][step].batch) for step in range(steps))
    return {
        name: statistics.mean((a["images"].float() - b["images"].float()).abs().mean().item() for a, b in pairs)
        for name, pairs in found.items()
    }


def run(name: str, data: Path, packed: Path) -> dict[str, float]:
    """One measurement in a process of its own: {"rate", "foreign": processor seconds of others a second and core}."""
    request = json.dumps([name, str(data), str(packed)])
    start, busy, own = time.perf_counter(), busy_seconds() or 0.0, _children()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loader", "--one", request],
        cwd=ROOT,
        env=environment(KEEP_FREED),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    others = (busy_seconds() or 0.0) - busy - (_children() - own)
    return {"rate": float(done.stdout.split()[-1]), "foreign": max(0.0, others / (time.perf_counter() - start))}


def _children() -> float:
    return os.times().children_user + os.times().children_system


def measure(data: Path | None, rounds: int) -> dict[str, Any]:
    """Every way of loading, in every round."""
    from vitrail.data.pack import pack
    from vitrail.data.sources.open import Data, find_splits

    order, rates, foreign = random.Random(0), {name: [] for name in HOW}, []
    with tempfile.TemporaryDirectory() as temporary:
        files = photographs(Path(temporary), data, IMAGES)
        store = Path(temporary) / "packed"
        pack(find_splits(Data(str(files))), store, 256)
        for number in range(rounds):
            for name in order.sample(sorted(HOW), len(HOW)):
                found = run(name, files, store)
                rates[name].append(found["rate"])
                foreign.append(round(found["foreign"], 3))
            print(f"loader: round {number + 1} of {rounds} done", file=sys.stderr, flush=True)
        levels = difference(files, store)
    return {"images_per_second": rates, "foreign": foreign, "difference": levels}


def text(document: dict[str, Any]) -> str:
    """The result as markdown."""
    rates = document["images_per_second"]
    rows = []
    for name, values in rates.items():
        ratios = [value / other for value, other in zip(values, rates["timm"], strict=True)]
        spread = "-".join(f"{ratio:.2f}" for ratio in quartiles(ratios))
        rows.append([name, f"{statistics.median(values):.0f}", f"{statistics.median(ratios):.2f}", spread])
    lines = [
        headline(document["machine"]),
        table(["loader", "images/s", "of timm's", "quartiles"], rows),
        "packed images differ from the files' by "
        + ", ".join(f"{levels:.2f} ({name})" for name, levels in document["difference"].items())
        + " grey levels on average",
        TARGETS,
    ]
    return "\n\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="photographs instead of drawn ones")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        name, data, packed = json.loads(options.one)
        print(rate(HOW[name](Path(data), Path(packed))))
        return 0
    if options.rounds < 1:
        parser.error("rounds must be 1 or more")
    try:
        document = {"benchmark": "loader", "machine": describe(), **measure(options.data, options.rounds)}
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        print(f"benchmarks.loader: {error}", file=sys.stderr)
        return 2
    write_json(options.json, document)
    print(text(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())

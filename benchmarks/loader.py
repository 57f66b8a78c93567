"""Images a second of the data path alone: ours, from files and packed, beside timm's loader and torchvision's folders.

    python -m benchmarks.loader --json loader.json
    python -m benchmarks.loader --data FOLDER_OF_PHOTOGRAPHS --rounds 5

Random crops to 224 px, bicubic, mirrored, of 500 JPEGs, in batches of 64: timm's default loader (worker processes,
Pillow, normalised after collation), an ImageFolder behind torch's DataLoader, and ours, which hands out bytes; ours,
too, from a store that `vitrail data pack` made, and with two processes instead of threads. Each measurement is a
fresh process with two workers. The ratio is timm's time divided by theirs: how many times faster they are. How far
packed images differ is measured, too: in evaluation, and for the same random crops.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import command
from benchmarks.photographs import photographs
from benchmarks.pool import KEEP_FREED, environment, program
from benchmarks.rounds import Record, images_per_second, new, report, take_turns

if TYPE_CHECKING:
    from vitrail.data.loader import Training

SIZE, BATCH, WORKERS, IMAGES = 224, 64, 2, 500
HALF = (0.5, 0.5, 0.5)
EPOCHS = 3  # the first starts processes and fills caches
TARGETS = "Aims, as multiples of timm's images/s: 2.5 from files, 8 packed."


def timm_batches(data: Path, size: int, batch: int, workers: int) -> Any:
    """timm's `create_loader`, with colour jitter off and our crops."""
    import torch
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    source: Any = create_dataset("", root=str(data / "train"))
    augment: dict[str, Any] = {"scale": (0.08, 1.0), "hflip": 0.5, "color_jitter": None, "interpolation": "bicubic"}
    how = {"is_training": True, "mean": HALF, "std": HALF, "num_workers": workers, "device": torch.device("cpu")}
    return create_loader(source, (3, size, size), batch, **augment, **how)


def image_folder(data: Path) -> Any:
    """torchvision's ImageFolder and transforms behind torch's DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.RandomResizedCrop(SIZE, interpolation=bicubic), transforms.RandomHorizontalFlip()]
    images = datasets.ImageFolder(
        str(data / "train"), transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(HALF, HALF)])
    )
    return DataLoader(images, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, drop_last=True)


def theirs(batches: Any) -> Iterator[int]:
    """The images of each batch of a loader that gives (images, targets), and 0 at the end of each epoch."""
    for _ in range(EPOCHS):
        yield from (len(images) for images, _ in batches)
        yield 0


def training(data: Path) -> Training:
    """Our training batches of the images in a folder."""
    from vitrail.data.images.augment import Augment
    from vitrail.data.images.preprocessing import Preprocessing
    from vitrail.data.loader import Training
    from vitrail.data.sources.open import Data, open_splits
    from vitrail.tasks import ClassifyConfig

    source, task = open_splits(Data(str(data))).train, ClassifyConfig()
    how = Preprocessing((SIZE, SIZE), HALF, HALF, interpolation="bicubic")
    views = task.views(Augment("inception", flip=0.5))
    return Training(source, how, views, partial(task.collate, source=source), batch=BATCH, seed=0)


def ours(data: Path, workers: int) -> Iterator[int]:
    """The same for our loader, which gives whole batches of bytes; 0 workers are two threads."""
    from vitrail.data.stream import stream

    batches = training(data)
    steps = len(batches.images) // BATCH
    for place, batch in enumerate(stream(batches, batches.keys(0, EPOCHS * steps), workers), 1):
        yield len(batch)
        if place % steps == 0:
            yield 0


HOW = {
    "timm": lambda data, packed: theirs(timm_batches(data, SIZE, BATCH, WORKERS)),
    "ImageFolder": lambda data, packed: theirs(image_folder(data)),
    "vitrail": lambda data, packed: ours(data, 0),
    "vitrail, 2 processes": lambda data, packed: ours(data, WORKERS),
    "vitrail packed": lambda data, packed: ours(packed, 0),
    "vitrail packed, 2 processes": lambda data, packed: ours(packed, WORKERS),
}


def seconds_of_image(batches: Iterable[int]) -> float:
    """Seconds per image, from the end of the first epoch to that of the last."""
    ends, images = [], 0
    for count in batches:
        images += count if ends else 0
        if not count:
            ends.append(time.perf_counter())
    return (ends[-1] - ends[0]) / images


def difference(data: Path, packed: Path, steps: int = IMAGES // BATCH) -> dict[str, float]:
    """Mean grey levels between the two paths: in evaluation (256 px, the middle 224), and for the same random crops."""
    from vitrail.data.loader import evaluation

    both = [training(place) for place in (data, packed)]
    middle = replace(both[0].images.how, resize="crop", crop_fraction=0.875)
    found: dict[str, Iterable[Any]] = {
        "evaluation": zip(*(evaluation(one.images.source, middle, batch=BATCH) for one in both), strict=True)
    }
    found["crops"] = ((both[0][step].batch, both[1][step].batch) for step in range(steps))
    return {
        name: statistics.mean((a["images"].float() - b["images"].float()).abs().mean().item() for a, b in pairs)
        for name, pairs in found.items()
    }


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Measures every way of loading, in every round."""
    from vitrail.data.pack import pack
    from vitrail.data.sources.open import Data, find_splits

    with tempfile.TemporaryDirectory() as temporary:
        files, store = photographs(Path(temporary), options.data, IMAGES), Path(temporary) / "packed"
        pack(find_splits(Data(str(files))), store, 256)
        record = new("random crops to 224 px", "timm")
        records.append(record)
        turns = {}
        for name in HOW:
            words = ["-m", "benchmarks.loader", "--one", json.dumps([name, str(files), str(store)])]
            turns[name] = partial(program, words, options.timeout, environment(KEEP_FREED))
        take_turns(record, turns, options.rounds, options.until)
        record["difference"] = difference(files, store)
        yield


def text(records: list[Record]) -> str:
    """The table, and how far packed images differ."""
    levels = [f"{level:.2f} ({name})" for record in records for name, level in record.get("difference", {}).items()]
    differ = f"Packed images differ from the files' by {', '.join(levels)} grey levels on average."
    return "\n\n".join([report(records, {"images/s": images_per_second}), *([differ] if levels else []), TARGETS])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser = command.parser("loader", __doc__)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="photographs instead of drawn ones")
    parser.add_argument("--one", help=SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        name, data, packed = json.loads(options.one)
        print(json.dumps({"seconds": seconds_of_image(HOW[name](Path(data), Path(packed)))}))
        return 0
    return command.run("loader", options, measure, text)


if __name__ == "__main__":
    sys.exit(main())

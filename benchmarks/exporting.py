"""How fast exported files answer beside timm's model in eager mode, and how long an export takes.

    python -m benchmarks.exporting --model ViT-S/16 --batches 1,8,16

Random weights, images of the model's size, all on the same threads in one process, a call or more a turn. timm reads
floats, which it need not normalise; the files read bytes. What a file loses on images: vitrail benchmark-export.
"""

from __future__ import annotations

import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.rounds import Record, deadline, images_per_second, new, report, say, take_turns

SECONDS = 1.0  # of a turn, or one call
AIM = (
    "Aims: float32 at least 1.25 of timm at batch 1 and 1.08 at 16; int8 2 at batch 1 and 1.4 at 8; export of Ti 60 s."
)


def turn(call: Callable[[], Any], count: int) -> dict[str, float]:
    """Seconds per image of as many calls as SECONDS hold."""
    began, processor, calls = time.perf_counter(), time.process_time(), 0
    while not calls or time.perf_counter() - began < SECONDS:
        call()
        calls += 1
    wall = time.perf_counter() - began
    return {"seconds": wall / calls / count, "processor_seconds": time.process_time() - processor}


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Exports once; then each batch."""
    import numpy as np
    import timm
    import torch

    from vitrail.data.images.preprocessing import Preprocessing
    from vitrail.export import ENDINGS, METHODS, export
    from vitrail.models.zoo import canonical, configure
    from vitrail.pipeline import Pipeline
    from vitrail.tasks import Classify

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = configure(options.model)
    names = tuple(map(str, range(config.classes)))
    how = Preprocessing(config.image_size, (0.5,) * 3, (0.5,) * 3)
    pipeline = Pipeline(Classify(config.build().eval(), how, class_names=names))
    other = timm.create_model(options.timm).eval()
    noise, files = np.random.default_rng(0).integers(0, 256, (8, 3, *config.image_size), np.uint8), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        for to in ENDINGS:
            for int8 in (None, list(noise)) if to in METHODS else (None,):
                name, began = to + ("" if int8 is None else " int8"), time.perf_counter()
                files[name] = export(pipeline, Path(folder) / f"{name}{ENDINGS[to]}", to, int8=int8).task
                say(f"{name}: exported in {time.perf_counter() - began:.0f} s")
        for place, count in enumerate(options.batches):
            images = torch.from_numpy(noise[np.arange(count) % len(noise)])
            floats = images.float() / 127.5 - 1
            turns = {"timm": partial(turn, partial(other, floats), count)}
            turns["vitrail"] = partial(turn, partial(pipeline._predicted, pipeline.module, images), count)
            turns |= {name: partial(turn, partial(file.outputs, images), count) for name, file in files.items()}
            record = new(f"{canonical(options.model)}, batch {count}", "timm")
            records.append(record)
            with torch.inference_mode():
                take_turns(record, turns, options.rounds, deadline(options.until, len(options.batches) - place))
            yield


def text(records: list[Record]) -> str:
    return f"{report(records, {'img/s': images_per_second})}\n\n{AIM}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser = command.parser("exporting", __doc__)
    parser.add_argument("--model", default="ViT-S/16")
    parser.add_argument("--timm", default="vit_small_patch16_224", help="the same model's name in timm")
    parser.add_argument("--batches", type=numbers, default=(1, 8, 16), help="with commas")
    return command.run("exporting", parser.parse_args(arguments), measure, text)


def numbers(value: str) -> tuple[int, ...]:
    return tuple(command.positive(part) for part in command.names(value))


if __name__ == "__main__":
    sys.exit(main())

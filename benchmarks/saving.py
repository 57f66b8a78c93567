"""By how much checkpoints delay the steps of a run: S/16 with AdamW and an average, saved every 50 steps or never.

    python -m benchmarks.saving --json saving.json
    python -m benchmarks.saving --model ViT-H/14 --batch 64 --device cuda

One process, which writes one file, and two that have half of the weights each (--shard 0), which write one each. A
round is a run in which stretches of so many steps take turns: with a save at the beginning, which goes on while it
trains and must be done when the stretch ends, without, without, with. Figures are medians over the rounds.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.machine import usable_cores
from benchmarks.pool import environment, program
from benchmarks.rounds import Record, deadline, new, report, seconds, spread, take_turns, values

AIM = "Aim: a save every 50 steps delays them by at most 2 %."


def worker(model: str, steps: int, side: int, batch: int, device: str) -> None:
    """One of the processes; the first one prints the seconds of the stretches with a save, without, and of the call."""
    import torch

    from vitrail import checkpoint
    from vitrail.batch import Batch
    from vitrail.data.images.preprocessing import Preprocessing
    from vitrail.models.zoo import configure, override
    from vitrail.optim import build as optim
    from vitrail.optim.ema import Ema
    from vitrail.runtime.blocks import autocast
    from vitrail.runtime.distributed import join, leave
    from vitrail.runtime.gradients import gradient
    from vitrail.tasks import Classify, ClassifyConfig
    from vitrail.train import Backward

    ranks = join()
    torch.set_num_threads(max(1, usable_cores() // ranks.world))
    config = override(configure(model), model, {"image_size": (side, side)})
    where = ranks.device(device)
    task: Any = Classify(config.build(), Preprocessing((side, side), (0.5,) * 3, (0.5,) * 3), ClassifyConfig()).to(
        where
    )
    task.init_weights(0)
    how = gradient(task, 1, 1, 0)
    if ranks.world > 1:
        from vitrail.runtime.together import grouped, shard, together

        shard(task, grouped(device, ranks.world, ranks.world), half=device == "cuda")
        how = together(task, 0)
    optimizer, ema = optim.build(task, optim.Config("adamw", lr=1e-4)), Ema(task, 0.9999)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    inputs = Batch(images=images, targets=torch.zeros(batch, dtype=torch.long), keys=torch.arange(batch)).to(where)
    take = Backward(batch * ranks.world, autocast("auto", where))

    def stretch() -> None:
        for step in range(steps):
            how([inputs], take)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(step)
        if device == "cuda":
            torch.cuda.synchronize()

    how([inputs], take)
    times = dict.fromkeys(("seconds", "never", "call"), 0.0)
    with tempfile.TemporaryDirectory() as own:
        folder = Path(ranks.texts(own)[0])
        with checkpoint.Writer(folder, 1, ranks, ranks.world > 1) as writer:
            for number, name in enumerate(("seconds", "never", "never", "seconds"), 1):
                ranks.flags(False)
                started = time.perf_counter()
                if name == "seconds":
                    writer.save(number, checkpoint.tensors(task, optimizer, ema))
                    times["call"] += (time.perf_counter() - started) / 2
                stretch()
                writer.wait()
                times[name] += (time.perf_counter() - started) / 2
        ranks.flags(False)
    if ranks.first:
        print(json.dumps(times), flush=True)
    leave(0)


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """One process, then, on a CPU, two."""
    what = options.model, options.steps, options.side, options.batch, options.device
    start = f"from benchmarks.saving import worker; worker{what}"
    for world in (1, 2) if options.device == "cpu" else (1,):
        where = "" if options.device == "cpu" else f" on {options.device}"
        name = f"{options.model} at {options.side}{where}, {world} x {options.batch} images"
        records.append(record := new(name, "saving"))
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "--no-python"]
        words = [*torchrun, sys.executable, "-c", start]
        turn = partial(program, words, options.timeout, environment({}))
        take_turns(record, {"saving": turn}, options.rounds, deadline(options.until, 2 - len(records) + 1))
        yield


def text(records: list[Record]) -> str:
    """The table, and the delay of each case."""
    parts = [report(records, {"seconds with a save": seconds})]
    for record in records:
        saving, never, calls = (values(record, "saving", key) for key in ("seconds", "never", "call"))
        delays = [100 * (a / b - 1) for a, b in zip(saving, never, strict=True)]
        parts.append(f"{record['case']}: delayed by {spread(delays, '.2f')} %, {spread(calls, '.3f')} s in the call.")
    return "\n\n".join([*parts, AIM])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser = command.parser("saving", __doc__)
    for name, default in (("steps", 50), ("side", 224), ("batch", 8)):
        parser.add_argument(f"--{name}", type=command.positive, default=default)
    parser.add_argument("--model", default="ViT-S/16")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return command.run("saving", parser.parse_args(arguments), measure, text)


if __name__ == "__main__":
    sys.exit(main())

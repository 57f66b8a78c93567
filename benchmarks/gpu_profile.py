"""Where the time of a training step goes on a GPU: Python's part by what it does, what waits for the device, kernels.

    python -m benchmarks.gpu_profile S/16@224 --batch 256 --libraries vitrail,timm

The steps are those of benchmarks/gpu.py. Where "host" is near 100 % there, the device waits for Python, and this says
what Python does meanwhile.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks import command
from benchmarks.command import names, positive
from benchmarks.gpu_worker import Trainee, wait

STEPS, ROWS = 8, 16


def sections(trainee: Trainee) -> dict[str, float]:
    """Milliseconds that Python needs for each part of a step, the device being idle before it; the median."""
    from vitrail.optim.build import clip
    from vitrail.train import Backward

    found = defaultdict[str, list[float]](list)
    parts: dict[str, Callable[[], Any]] = {
        "gradient": lambda: trainee.gradient([trainee.batch], Backward(len(trainee.batch), trainee.autocast)),
        "clip": lambda: clip(trainee.task.parameters(), 1.0),
        "optimizer": trainee.optimizer.step,
        "zero": lambda: trainee.optimizer.zero_grad(set_to_none=True),
        "device": lambda: wait(trainee.device),
    }
    for _ in range(STEPS):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            found[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(values) for name, values in found.items()}


def waits(trainee: Trainee) -> list[str]:
    """Where a step waits for the device."""
    import torch

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        trainee.step()
        torch.cuda.set_sync_debug_mode("default")
    return [f"{one.filename}:{one.lineno}" for one in seen if "synchroniz" in str(one.message)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints all of each library in turn."""
    import torch

    parser = command.parser("gpu_profile", __doc__, rounds=None)
    parser.add_argument("case")
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--libraries", type=names, default=("vitrail", "timm"))
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    for library in options.libraries:
        backend = "inductor" if options.device == "cuda" else "aot_eager"
        trainee = Trainee(library, options.case, options.batch, options.device, backend)
        print(f"\n{library}: {trainee.start()}\n{trainee.steps(STEPS)}")
        print(", ".join(f"{name} {value:.2f} ms" for name, value in sections(trainee).items()))
        if options.device == "cuda":
            print("waits:", *waits(trainee) or ["none"], sep="\n  ")
        with torch.profiler.profile() as profile:
            trainee.steps(2)
        table = profile.key_averages().table
        print(table(sort_by=f"self_{options.device}_time_total", row_limit=ROWS, max_name_column_width=60))
        with cProfile.Profile() as calls:
            trainee.steps(STEPS)
        text = io.StringIO()
        pstats.Stats(calls, stream=text).sort_stats("tottime").print_stats(ROWS)
        print(text.getvalue())
        del trainee, profile
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What `vitrail plan` foretells beside what is measured here: memory, operations and the time of a step.

    python -m benchmarks.planning --rounds 5        # twelve configurations, on the CPU in fp32; --only 0,5: some

Memory is what autograd saves of a step, weights, gradients, the optimiser's state; with checkpointing, also what one
block saves while it is computed again. Operations are those of torch's FlopCounterMode. The time is foretold by a
calibration of the same model at another depth and batch (of a ResNet, at another batch), in turns with the step.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import command
from benchmarks.machine import table
from benchmarks.rounds import Record, new, ratio, spread, take_turns, values

HEADERS = ("step", "MiB foretold", "measured", "differ by", "operations differ by", "seconds", "foretold / measured")
CASES = (  # model, image size, batch, optimiser, checkpointing
    ("ViT-Ti/16", 224, 4, "adamw", False), ("ViT-Ti/16", 224, 8, "muon", True), ("ViT-Ti/32", 224, 16, "sgd", False),
    ("ViT-Ti/8", 112, 8, "adamw", False), ("ViT-S/16", 224, 4, "muon", False), ("ViT-S/16", 224, 8, "adamw", True),
    ("ViT-S/32", 224, 8, "sgd", False), ("ViT-S/8", 112, 4, "adamw", False), ("ViT-B/16", 224, 2, "adamw", False),
    ("ViT-B/32", 224, 4, "sgd", True), ("R26+ViT-S/32", 224, 2, "adamw", False), ("R50x1", 224, 2, "sgd", False),
)  # fmt: skip


def run_of(model: str, size: int, batch: int, optim: str, again: bool) -> Any:
    """The Run of a case."""
    from vitrail.data.images.preprocessing import Preprocessing
    from vitrail.models.zoo import configure
    from vitrail.optim.build import Config
    from vitrail.run import Run

    config, half = configure(model, classes=1000, image_size=size), Preprocessing((size, size), (0.5,) * 3, (0.5,) * 3)
    return Run("x", config, half, batch=batch, optim=Config(optim, weight_decay=0.0), checkpointing=again)


class Step:
    """A step of a run on noise; called, the seconds of its gradient and of the optimiser's update."""

    def __init__(self, run: Any) -> None:
        from vitrail.batch import Batch
        from vitrail.optim.build import build
        from vitrail.runtime.blocks import checkpoint_blocks
        from vitrail.tasks.classify import Classify

        self.task = Classify(run.model.build("cpu"), run.preprocessing)
        self.task.model.init_weights(0)
        self.optimizer = build(self.task, run.optim)
        if run.checkpointing:
            checkpoint_blocks(self.task)
        noise = torch.randint(256, (run.batch, 3, *run.preprocessing.image_size), dtype=torch.uint8)
        self.batch = Batch(images=noise, targets=torch.arange(run.batch))

    def __call__(self, around: Any = None) -> tuple[float, float]:
        start = time.perf_counter()
        with around or nullcontext():
            loss, _ = self.task(self.batch)
        self.optimizer.zero_grad()
        loss.backward()
        between = time.perf_counter()
        self.optimizer.step()
        return between - start, time.perf_counter() - between

    def memory(self) -> tuple[int, int]:
        """Bytes: weights, gradients and the optimiser's state; what autograd saves of a step."""
        held, weights = list[torch.Tensor](), list(self.task.parameters())
        # Each is kept, or its storage would be another's.
        self(torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t))
        states = [t for kept in self.optimizer.state.values() for t in kept.values() if isinstance(t, torch.Tensor)]
        fixed = sum(t.nbytes for p in weights for t in (p, p.grad) if t is not None) + sum(t.nbytes for t in states)
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
        return fixed, sum(sizes[place] for place in sizes.keys() - {p.untyped_storage().data_ptr() for p in weights})


def memory(run: Any) -> tuple[int, int]:
    """Bytes of a step, foretold and measured."""
    from vitrail.plan import layouts

    plan = next(one for one in layouts(run, 1, half=False) if one.checkpointing == run.checkpointing)
    fixed, saved = Step(run).memory()
    if run.checkpointing:
        one, two = (replace(run, checkpointing=False, model=replace(run.model, depth=depth)) for depth in (1, 2))
        saved += Step(two).memory()[1] - Step(one).memory()[1]
    return plan.fixed + plan.whole + plan.gradients + plan.images * plan.image, fixed + saved


def operations(run: Any) -> tuple[int, int]:
    """Of an image's forward pass, foretold and counted by torch."""
    from vitrail.models.cost import flops

    size = run.preprocessing.image_size
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run.model.build("meta").eval()(torch.empty(1, 3, *size, device="meta"))
    return flops(run.model, size), counter.get_total_flops()


def needs(run: Any) -> tuple[float, float]:
    """What a step's gradient and its update grow with: operations, and weights."""
    from vitrail.models.cost import flops, parameters

    forward = flops(run.model, run.preprocessing.image_size)
    return forward * (3 + run.checkpointing) * run.batch, parameters(run.model)


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Measures the chosen cases, one after the other: a gradient grows with the operations, an update with the weights,
    as `vitrail plan --calibrate` has it."""

    def speed(run: Any, of: Any) -> Callable[[], dict[str, Any]]:
        step = Step(run)
        gradients, updates = (needs(of)[place] / needs(run)[place] for place in range(2))
        step()

        def turn() -> dict[str, Any]:
            own, (gradient, update) = time.process_time(), step()
            own = time.process_time() - own
            return {"seconds": gradient * gradients + update * updates, "processor_seconds": own}

        return turn

    torch.set_num_threads(options.threads)
    for model, size, batch, optim, again in (CASES[int(number)] for number in options.only):
        run = run_of(model, size, batch, optim, again)
        shallow = replace(run.model, depth=run.model.depth // 2) if "depth" in vars(run.model) else run.model
        other = replace(run, batch=batch + max(1, batch // 2), model=shallow)
        name = f"{model}@{size}, {batch} images, {optim}{', again' * again}"
        records.append(new(name, "foretold", memory=memory(run), operations=operations(run)))
        take_turns(
            records[-1], {"foretold": speed(other, run), "measured": speed(run, run)}, options.rounds, options.until
        )
        yield


def text(records: list[Record]) -> str:
    """The table, and the aims."""
    rows = list[list[str]]()
    for record in records:
        (told, held), (flops, counted) = record["memory"], record["operations"]
        cells = [f"{told / 2**20:.0f}", f"{held / 2**20:.0f}", f"{told / held - 1:+.1%}", f"{flops - counted:+d}"]
        before, took = (values(record, name) for name in ("foretold", "measured"))
        rows.append([record["case"], *cells, spread(took), str(ratio(before, took))])
    return f"{table(HEADERS, rows)}\n\nAims: memory within 5 %, operations to the digit, times within 10 %."


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser, numbers = command.parser("planning", __doc__), tuple(map(str, range(len(CASES))))
    parser.add_argument("--only", type=command.names, default=numbers, help="numbers of the steps, from 0")
    options = parser.parse_args(arguments)
    command.known(options.only, numbers, parser)
    return command.run("planning", options, measure, text)


if __name__ == "__main__":
    sys.exit(main())

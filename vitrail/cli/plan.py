"""What a training costs before it is paid for, on devices that need not be here."""

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from vitrail.cli import options
from vitrail.cli.options import Command, Flag, Given
from vitrail.cli.train import recipe

if TYPE_CHECKING:
    from vitrail.batch import Batch
    from vitrail.data.sources.open import Splits
    from vitrail.run import Run

NOWHERE = "(no data)"
SECONDS = 30.0  # of a calibration
Kinds = Literal["a100-40", "a100-80", "h100", "h200", "b200", "l4", "t4", "rtx4090"]


@dataclass(kw_only=True)
class Plan(Command):
    """Say what a training costs: FLOPs, memory by layout, hours and money.

    Its options are those of vitrail train: vitrail plan ViT-L/16 --images 303000000 --duration "7 epochs" --batch 4096
    --devices 8 --kind h100. A multiply and an add count as two FLOPs, a training image as three forward passes.
    """

    extends = True
    what: Positional[Annotated[str, arg(metavar="WHAT")]]
    """A recipe, FILE.py:NAME as for vitrail train, a run folder, or a model of docs/zoo.md."""
    data: Annotated[str, arg(metavar="PATH", help_behavior_hint="")] = ""
    """The images, which are counted. It need not exist where --images is given."""
    images: Annotated[int, arg(metavar="N", help_behavior_hint="")] = 0
    """How many images there are to train on."""
    devices: Annotated[int, arg(metavar="N")] = 1
    """How many devices share a step."""
    kind: Kinds = "h100"
    """Of the devices."""
    utilisation: Annotated[float, arg(metavar="X")] = 0.4
    """Fraction of the peak that training reaches: between ViT-g/14 on H100s (0.27 to 0.29, NVIDIA NeMo) and ViT-22B on
    TPUv4 (0.55, arXiv 2302.05442)."""
    calibrate: Flag = False
    """Plan for devices like this machine's instead, by training on it for about 30 seconds, on noise or on --data."""
    price: Annotated[float, arg(metavar="X", help_behavior_hint="")] = 0.0
    """Of a device for an hour, in any currency."""

    def run(self, given: Given) -> None:
        import torch

        from vitrail.plan import here, planned
        from vitrail.runtime.blocks import pick_device
        from vitrail.runtime.devices import KINDS

        if min(self.images, self.price, self.devices - 1) < 0 or not 0 < self.utilisation <= 1:
            raise ValueError("--devices is 1 or more, --images and --price 0 or more, --utilisation above 0, up to 1.")
        run, splits = self._opened(given)
        images = self.images or (len(splits.train) if splits else 0)
        if not images and "epoch" in run.duration:
            raise ValueError(f"{run.duration} of how many images? Say --images N, or name them with --data PATH.")
        kind, rate = KINDS[self.kind], 0.0
        if self.calibrate:
            kind = here(torch.device(pick_device(run.device)))
            if not (best := planned(run, images, self.devices, kind, measured=1.0)["best"]):
                raise ValueError(f"{run.recipe} does not fit this machine, so it cannot be measured here.")
            rate = pace(
                replace(run, checkpointing=best["checkpointing"]), best["images"], self.devices, splits, SECONDS
            )
        card = planned(run, images, self.devices, kind, self.utilisation, rate)
        card["kind"] = "here" if self.calibrate else self.kind
        card["cost"] = card["device_hours"] * self.price if self.price else None
        self.answer(card, text(card))

    def _opened(self, given: Given) -> "tuple[Run, Splits | None]":
        """The run, and its data where that is to be counted or trained on."""
        from vitrail import recipes
        from vitrail import run as runs
        from vitrail.data.images.preprocessing import Preprocessing
        from vitrail.data.sources.open import Data, open_splits
        from vitrail.models.zoo import configure

        if (Path(self.what) / "run.json").is_file():
            run = runs.read(Path(self.what))
        elif self.what in recipes.RECIPES or ".py:" in self.what:
            reading = {name: said for name, said in given.items() if name.startswith("data.")} if self.data else {}
            run = recipe(self.what, self.data, reading, NOWHERE)
        else:
            try:
                model = configure(self.what)
            except ValueError as error:
                raise ValueError(f"there is no recipe or run {self.what!r}, and {error}") from None
            half = (0.5,) * model.channels
            run = runs.Run(self.what, model, Preprocessing(model.image_size, half, half), Data(self.data or NOWHERE))
        run = options.override(run, given, self)
        if self.images or run.data.path == NOWHERE:
            return run, None
        splits = open_splits(run.data, run.task.needs)
        return run if "model.classes" in given else run.task.adapt(run, splits.train), splits


def pace(run: "Run", most: int, devices: int, splits: "Splits | None", seconds: float) -> float:
    """FLOP/s of the device here in a training, as one of the devices that share its batch, with up to `most` images at
    once; measured for so long, on noise without data."""
    import numpy as np

    from vitrail.data.sources.open import Splits
    from vitrail.data.sources.source import Arrays
    from vitrail.models.cost import TRAINING, flops
    from vitrail.train import Trainer

    if splits is None:
        if run.task.needs not in ("none", "classes"):
            raise ValueError(f"noise has no {run.task.needs} to train on; --calibrate needs --data PATH here.")
        run = replace(run, model=replace(run.model, classes=run.model.classes or 1))
        names, shape = tuple(map(str, range(run.model.classes))), (*run.preprocessing.image_size, run.model.channels)
        noise = np.broadcast_to(np.random.default_rng(0).integers(0, 256, shape, np.uint8), (len(names), *shape))
        source = Arrays(noise, np.arange(len(names)), names, "noise")
        splits = Splits(source, source, "")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(replace(run, start=None, duration=f"{10**9} steps"), Path(folder), splits)
    images, weight = trainer.batches.images, next(trainer.task.parameters())

    def clock() -> float:
        weight.flatten()[0].item()  # which waits for a GPU
        return time.perf_counter()

    def batch(count: int) -> "Batch":
        some = [images.sample(number % len(splits.train), number) for number in range(count)]
        return trainer.batches.collate(some).to(trainer.device)

    end, given, found = clock() + seconds, batch(min(2, most)), list[tuple[float, float]]()
    while len(found) < 3 or clock() < end:
        begun = clock()
        trainer.gradient([given], trainer.backward)
        between = clock()
        trainer.optimizer.step()
        found.append(((between - begun) / len(given), clock() - between))
        trainer.optimizer.zero_grad(set_to_none=True)
        times = seconds / 10 / (min(found)[0] * len(given))  # that the fastest fits in a tenth of the time
        if len(found) == 3 and times > 1 and len(given) < most:
            given, found = batch(min(most, max(2, int(times)) * len(given))), []
    columns = zip(*found[1:], strict=True)  # the first one finds the memory
    gradient, update = map(statistics.median, columns)
    needs = flops(run.model, run.preprocessing.image_size) * (TRAINING + run.checkpointing)
    return needs / (gradient + update * devices / run.batch)


def text(card: dict[str, Any]) -> str:
    """The card for people."""
    from vitrail.plan import text as size

    def way(one: dict[str, Any]) -> str:
        name = "fsdp (--shard 0)" if one["name"] == "fsdp" else one["name"]
        return name + " with --checkpointing" * one["checkpointing"]

    best, of = card["best"], f" of {card['images']:,} images" if card["images"] else ""
    lines = [
        "{name}: {parameters:,} parameters, {flops_forward:.4g} FLOP forward".format(**card),
        f"{card['duration']}{of} = " + "{steps:,} steps of {batch:,}: {flops_training:.4g} FLOP".format(**card),
        f"{card['devices']} x {card['kind']} in {card['precision']}, {size(card['memory'])} of each to be used:",
    ]
    for one in card["layouts"]:
        made = f"{size(one['images'] * one['image'])} of it for {one['images']:,} images at once"
        lines.append(f"  {way(one):40}{size(one['total'])}, {made}" + ": does not fit" * (not one["fits"]))
    if not best:
        return "\n".join([*lines, "nothing fits: take more devices, over which --shard 0 divides it, or larger ones"])
    fewer = f" and --micro-batch {best['micro_batch']}" if best["parts"] > card["layouts"][0]["parts"] else ""
    part = f", {card['utilisation']:.0%} of its peak" if card["utilisation"] else ""
    lines += [
        f"best: {way(best)}{fewer}, {size(best['total'])}",
        f"{card['images_per_second']:,.1f} images/s by {card['flops_per_second'] / 1e12:.3g} TFLOP/s a device{part}",
        "{hours:,.2f} hours, {device_hours:,.2f} device-hours".format(**card),
    ]
    return "\n".join(lines) + (f", {card['cost']:,.2f} for all" if card["cost"] else "")

"""One training run of a process, timed step by step; `benchmarks.training` starts it and reads its one line of JSON.

    python -m benchmarks.trainee '{"how": "vitrail", "case": "Ti/16@224", "data": "photos", "steps": 30, "workers": 0}'

how: "vitrail" is the Trainer on a Run; "bare" is a loop over batches that lie in memory, the limit of any trainer; and
"loader" is that loop over a torch DataLoader. Model (ours), optimiser and clipping are the same in all three.
`first_step` and `timms_first_step` are what `benchmarks.startup` times: a process until one step is done.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.timm_script import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.run import Run


@dataclass(frozen=True)
class Case:
    """A model, its images a step, and how many steps are run before the clock starts and while it runs."""

    shape: Shape
    batch: int
    warm: int
    steps: int
    photos: bool = True

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of each channel; the std is the same."""
        return (0.5,) * self.shape.channels


CASES = {
    "Ti/16@224": Case(Shape(224, 16, 192, 12, 3), batch=16, warm=5, steps=30),
    "S/16@224": Case(Shape(224, 16, 384, 12, 6), batch=8, warm=5, steps=20),
    "demo": Case(Shape(28, 7, 128, 4, 4, channels=1), batch=64, warm=20, steps=150, photos=False),
}
FIRST = replace(CASES["Ti/16@224"], batch=8, warm=1)
LR, DECAY, CLIP = 1e-4, 0.05, 1.0


def run_of(
    shape: Shape,
    data: Path | str,
    augment: dict[str, Any],
    lr: float,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    warmup: str = "0 steps",
    smoothing: float = 0.0,
    **fields: Any,
) -> Run:
    """A Run with AdamW and a cosine, in fp32 on the CPU. mean, std: 0.5 by default. fields: others of the Run."""
    from vitrail.data.images.augment import Augment
    from vitrail.data.images.preprocessing import Preprocessing
    from vitrail.data.sources.open import Data
    from vitrail.optim.build import Config
    from vitrail.optim.schedule import Schedule
    from vitrail.run import Run
    from vitrail.tasks import ClassifyConfig

    half = (0.5,) * shape.channels
    described = Run(
        recipe="benchmark",
        model=shape.vitrail(),
        preprocessing=Preprocessing((shape.size,) * 2, mean or half, std or half, interpolation="bicubic"),
        data=Data(str(data)),
        augment=Augment(**augment),
        task=ClassifyConfig(smoothing=smoothing),
        optim=Config(lr=lr, weight_decay=DECAY, clip=CLIP, schedule=Schedule("cosine", warmup=warmup)),
        device="cpu",
        precision="fp32",
    )
    return replace(described, **fields)


def our_run(case: Case, data: Path, steps: int) -> Run:
    """A case as a Run; nothing is evaluated or saved before the end, and each step is logged, as timm's script does."""
    total, crop = f"{case.warm + steps} steps", "inception" if case.photos else "none"
    often = {"log_every": 1, "evaluate_every": total, "checkpoint_every": total}
    return run_of(case.shape, data, {"crop": crop}, LR, batch=case.batch, duration=total, **often)


def trained(run: Run, warm: int) -> dict[str, Any]:
    """The Trainer, whole: the seconds of each step, and the fraction of the time after `warm` steps for which it waited
    for images, as its log has it."""
    from vitrail import run as runs
    from vitrail.train import Trainer

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        runs.write(run, out)
        trainer = Trainer(run, out)
        ends = [time.perf_counter()]
        trainer.task.after_step = lambda step: ends.append(time.perf_counter())
        trainer.fit()
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    waits = [line["data_wait"] for line in lines if "data_wait" in line and line["step"] > warm]
    return {"steps": between(ends), "data_wait": sum(waits) / len(waits)}


def between(ends: Iterable[float]) -> list[float]:
    """Durations, from the clock at the start and at each end."""
    return [after - before for before, after in pairwise(ends)]


def vitrail(case: Case, data: Path, steps: int, workers: int) -> dict[str, Any]:
    """The Trainer, which prepares images in threads."""
    return trained(our_run(case, data, steps), case.warm)


def bare(case: Case, data: Path, steps: int, workers: int) -> dict[str, Any]:
    """A bare loop over batches in memory."""
    import torch

    shape = (case.batch, case.shape.channels, case.shape.size, case.shape.size)
    batches = [(torch.randn(shape), torch.randint(case.shape.classes, shape[:1])) for _ in range(4)]
    return {"steps": between(loop(case, islice(cycle(batches), case.warm + steps)))}


def loader(case: Case, data: Path, steps: int, workers: int) -> dict[str, Any]:
    """torchvision's data sets and transforms behind torch's DataLoader, as most scripts have it."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    last = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(case.mean, case.mean)]
    if case.photos:
        bicubic = transforms.InterpolationMode.BICUBIC
        crop = transforms.RandomResizedCrop(case.shape.size, interpolation=bicubic)
        images = datasets.ImageFolder(str(data / "train"), transforms.Compose([crop, *last]))
    else:
        images = datasets.FashionMNIST(str(data.parents[1]), transform=transforms.Compose(last))
    batches = DataLoader(images, case.batch, shuffle=True, num_workers=workers, drop_last=True)
    return {"steps": between(loop(case, islice(batches, case.warm + steps)))}


def loop(case: Case, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[float]:
    """Trains on the batches; yields the clock at the start and at the end of each step."""
    import torch

    from vitrail.models.vit import ViT

    torch.manual_seed(0)
    model = ViT(case.shape.vitrail()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=True)
    yield time.perf_counter()
    for images, targets in batches:
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield time.perf_counter()


class SteppedError(Exception):
    """The first step is done."""


def first_step(data: Path) -> None:
    """The Trainer, up to its first step on a folder of JPEGs."""
    from vitrail import run as runs
    from vitrail.train import Trainer

    def stop(step: int) -> None:
        raise SteppedError

    run = our_run(FIRST, data, 0)
    with tempfile.TemporaryDirectory() as folder, suppress(SteppedError):
        runs.write(run, Path(folder) / "run")
        trainer = Trainer(run, Path(folder) / "run")
        trainer.task.after_step = stop
        trainer.fit()


def timms_first_step(data: Path) -> None:
    """The same of timm's parts, without worker processes: starting them takes longer than the images of one step."""
    import timm
    import torch
    from timm.optim._optim_factory import create_optimizer_v2

    from benchmarks.loader import timm_batches

    model = timm.create_model("vit_tiny_patch16_224", num_classes=FIRST.shape.classes).train()
    optimizer = create_optimizer_v2(model, "adamw", LR, DECAY)
    images, targets = next(iter(timm_batches(data, FIRST.shape.size, FIRST.batch, 0)))
    torch.nn.functional.cross_entropy(model(images), targets).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()


HOW = {"vitrail": vitrail, "bare": bare, "loader": loader}


def main() -> None:
    """Runs what the argument says and prints {"steps": seconds of each, "data_wait": ...}."""
    request = json.loads(sys.argv[1])
    case, steps = CASES[request["case"]], request["steps"]
    result = HOW[request["how"]](case, Path(request["data"]), steps, request["workers"])
    assert len(result["steps"]) == case.warm + steps, f"{len(result['steps'])} steps of {case.warm} + {steps}"
    print(json.dumps(result))


if __name__ == "__main__":
    main()

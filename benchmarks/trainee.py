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
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.timm_script import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.run import Run
    from vitrail.train import Trainer


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
        """Of each channel; the standard deviation is the same."""
        return (0.5,) * self.shape.channels


CASES = {
    "Ti/16@224": Case(Shape(224, 16, 192, 12, 3), batch=16, warm=5, steps=30),
    "S/16@224": Case(Shape(224, 16, 384, 12, 6), batch=8, warm=5, steps=20),
    "demo": Case(Shape(28, 7, 128, 4, 4, channels=1), batch=64, warm=20, steps=150, photos=False),
}
FIRST = replace(CASES["Ti/16@224"], batch=8, warm=1)
LR, DECAY, CLIP = 1e-4, 0.05, 1.0


def our_run(case: Case, data: Path, steps: int) -> Run:
    """Our recipe for a case; nothing is evaluated or saved before the end."""
    from vitrail.data.images.augment import Augment
    from vitrail.data.images.preprocessing import Preprocessing
    from vitrail.data.sources.open import Data
    from vitrail.optim.build import Config
    from vitrail.optim.schedule import Schedule
    from vitrail.run import Run

    total = f"{case.warm + steps} steps"
    size = (case.shape.size, case.shape.size)
    return Run(
        recipe="benchmark",
        model=case.shape.vitrail(),
        preprocessing=Preprocessing(size, case.mean, case.mean, interpolation="bicubic"),
        data=Data(str(data)),
        augment=Augment(crop="inception" if case.photos else "none"),
        optim=Config(lr=LR, weight_decay=DECAY, clip=CLIP, schedule=Schedule("cosine")),
        batch=case.batch,
        duration=total,
        log_every=case.warm,
        evaluate_every=total,
        checkpoint_every=total,
        device="cpu",
        precision="fp32",
    )


def our_trainer(case: Case, data: Path, steps: int, out: Path) -> Trainer:
    """Of a new run in the folder `out`."""
    from vitrail import run
    from vitrail.train import Trainer

    described = our_run(case, data, steps)
    run.write(described, out)
    return Trainer(described, out)


def vitrail(case: Case, data: Path, steps: int, workers: int) -> dict[str, Any]:
    """The Trainer, whole; `data_wait` is its own log's."""
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        trainer = our_trainer(case, data, steps, out)
        # The log's own speed is rounded for people.
        trainer.task.after_step = lambda step: ends.append(time.perf_counter())
        trainer.fit()
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    waits = [line["data_wait"] for line in lines if "data_wait" in line and line["step"] > case.warm]
    return {"ends": ends, "data_wait": sum(waits) / len(waits)}


def bare(case: Case, data: Path, steps: int, workers: int) -> dict[str, Any]:
    """Batches in memory."""
    import torch

    shape = (case.batch, case.shape.channels, case.shape.size, case.shape.size)
    batches = [(torch.randn(shape), torch.randint(case.shape.classes, shape[:1])) for _ in range(4)]
    return {"ends": list(loop(case, islice(cycle(batches), case.warm + steps)))}


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
    return {"ends": list(loop(case, islice(batches, case.warm + steps)))}


def loop(case: Case, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[float]:
    """Trains on them; the clock at the end of each step."""
    import torch

    from vitrail.models.vit import ViT

    torch.manual_seed(0)
    model = ViT(case.shape.vitrail()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, fused=True)
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

    def stop(step: int) -> None:
        raise SteppedError

    with tempfile.TemporaryDirectory() as folder, suppress(SteppedError):
        trainer = our_trainer(FIRST, data, 0, Path(folder) / "run")
        trainer.task.after_step = stop
        trainer.fit()


def timms_first_step(data: Path) -> None:
    """The same of timm's parts, without worker processes: starting them takes longer than the images of one step."""
    import timm
    import torch
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader
    from timm.optim._optim_factory import create_optimizer_v2

    model = timm.create_model("vit_tiny_patch16_224", num_classes=FIRST.shape.classes).train()
    optimizer = create_optimizer_v2(model, "adamw", LR, DECAY)
    source: Any = create_dataset("", root=str(data / "train"))
    augment: dict[str, Any] = {"scale": (0.08, 1.0), "hflip": 0.5, "color_jitter": None, "interpolation": "bicubic"}
    batches = create_loader(
        source,
        (3, FIRST.shape.size, FIRST.shape.size),
        FIRST.batch,
        is_training=True,
        **augment,
        mean=FIRST.mean,
        std=FIRST.mean,
        num_workers=0,
        device=torch.device("cpu"),
    )
    images, targets = next(iter(batches))
    torch.nn.functional.cross_entropy(model(images), targets).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()


HOW = {"vitrail": vitrail, "bare": bare, "loader": loader}


def main() -> None:
    """Run what the argument says and print {"seconds_per_image": ..., "data_wait": ...}."""
    request = json.loads(sys.argv[1])
    case, steps = CASES[request["case"]], request["steps"]
    result = HOW[request["how"]](case, Path(request["data"]), steps, request["workers"])
    ends = result.pop("ends")
    assert len(ends) == case.warm + steps, f"{len(ends)} steps of {case.warm} + {steps}"
    seconds = (ends[-1] - ends[case.warm - 1]) / (steps * case.batch)
    print(json.dumps({"seconds_per_image": seconds, **result}))


if __name__ == "__main__":
    main()

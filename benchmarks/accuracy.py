"""Accuracy and wall time of a whole training from scratch, ours beside timm's script.

    python -m benchmarks.accuracy cifar10 --data cifar10.tar.gz --timm-script train.py --minutes 60 --json cifar10.json
    python -m benchmarks.accuracy cifar10 --data FOLDER --timm-script train.py --epochs 20 --side-by-side

The same small ViT, files, crops, flips, smoothing, AdamW, clipping, schedule and number of steps, in fp32 on the CPU;
each library has its own initial weights (unless --same-start) and its own order of the images. Both see the 10,000 test
images now and then, for the curve; the result is what they say after the last epoch. Nothing was tuned on them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from benchmarks import timm_script
from benchmarks.machine import ROOT, describe, headline, table, usable_cores, write_json
from benchmarks.pool import KEEP_FREED, environment
from benchmarks.timm_script import Shape
from benchmarks.trainee import Case, bare

if TYPE_CHECKING:
    from vitrail.run import Run

CLIP, MIXUP, CUTMIX = 1.0, 0.2, 1.0
LOADING = 1.15  # what reading and augmenting add to a bare step, about
OURS = (
    "import sys, pathlib; from vitrail import run, train; "
    "folder = pathlib.Path(sys.argv[1]); train.Trainer(run.read(folder), folder).fit()"
)
Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Setting:
    """A recipe in the terms that both libraries have.

    scale: of the random crop's area. mix: the share of pairs that Mixup or CutMix mixes, which pays from about fifty
    epochs on; fewer do not even fit the plain images.
    """

    shape: Shape
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    batch: int
    lr: float
    decay: float
    scale: tuple[float, float]
    smoothing: float
    epochs: int
    seed: int
    mix: float

    @property
    def warmup(self) -> int:
        """Epochs of linear warm-up; the cosine takes the rest."""
        return max(1, self.epochs // 10)

    @property
    def evaluate_every(self) -> int:
        """Epochs between evaluations, about ten in all."""
        return max(1, self.epochs // 10)


def cifar10(epochs: int, seed: int, mix: float) -> Setting:
    """CIFAR-10 in an hour of a laptop: 16 tokens, 1.2 M parameters, average pooling.

    Patch 4 would have 64 tokens and see a quarter of the images in the time.
    """
    return Setting(
        shape=Shape(32, 8, 128, 6, 4, pool="avg"),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.2435, 0.2616),
        batch=100,
        lr=1e-3,
        decay=0.05,
        scale=(0.7, 1.0),
        smoothing=0.1,
        epochs=epochs,
        seed=seed,
        mix=mix,
    )


SETTINGS = {"cifar10": cifar10}


def our_run(setting: Setting, data: Path, per_epoch: int) -> Run:
    """The setting as a Run; `per_epoch`: steps of an epoch, a rest smaller than a batch left out, as timm does."""
    from vitrail.data.images.augment import Augment
    from vitrail.data.images.preprocessing import Preprocessing
    from vitrail.data.sources.open import Data
    from vitrail.optim.build import Config
    from vitrail.optim.schedule import Schedule
    from vitrail.run import Run
    from vitrail.tasks.classify import Config as Task

    size = (setting.shape.size, setting.shape.size)
    mixup, cutmix = (MIXUP, CUTMIX) if setting.mix else (0.0, 0.0)
    schedule = Schedule("cosine", warmup=f"{setting.warmup * per_epoch} steps")
    return Run(
        recipe="benchmark",
        model=setting.shape.vitrail(),
        preprocessing=Preprocessing(size, setting.mean, setting.std, interpolation="bicubic"),
        data=Data(str(data)),
        augment=Augment("inception", setting.scale, flip=0.5, mixup=mixup, cutmix=cutmix, mix=setting.mix),
        task=Task(smoothing=setting.smoothing),
        optim=Config(lr=setting.lr, weight_decay=setting.decay, clip=CLIP, schedule=schedule),
        batch=setting.batch,
        duration=f"{setting.epochs * per_epoch} steps",
        evaluate_every=f"{setting.evaluate_every * per_epoch} steps",
        checkpoint_every=f"{setting.evaluate_every * per_epoch} steps",
        seed=setting.seed,
        device="cpu",
        precision="fp32",
    )


def timm_arguments(setting: Setting, data: Path, output: Path, workers: int) -> list[str]:
    """The setting as arguments of the script, whose summary.csv will lie in `output`."""
    mixing = ["--mixup", str(MIXUP), "--cutmix", str(CUTMIX), "--mixup-prob", str(setting.mix), "--mixup-mode", "pair"]
    return [
        *("--data-dir", str(data), "--train-split", "train", "--val-split", "test"),
        *(*timm_script.model(setting.shape), *timm_script.SAME),
        *("--mean", *map(str, setting.mean), "--std", *map(str, setting.std)),
        *("--scale", *map(str, setting.scale), "--hflip", "0.5", "--smoothing", str(setting.smoothing)),
        *(mixing if setting.mix else []),
        *("--lr", str(setting.lr), "--weight-decay", str(setting.decay), "--clip-grad", str(CLIP)),
        *("--warmup-epochs", str(setting.warmup), "--epochs", str(setting.epochs - setting.warmup)),
        *("--batch-size", str(setting.batch), "--validation-batch-size", "500", "--workers", str(workers)),
        *("--val-interval", str(setting.evaluate_every), "--seed", str(setting.seed), "--log-interval", "100"),
        *("--output", str(output.parent), "--experiment", output.name, "--checkpoint-hist", "1"),
    ]


def our_accuracies(metrics: str, per_epoch: int) -> Curve:
    """(epoch from 1, accuracy) for each evaluation in the whole lines of metrics.jsonl."""
    lines = [json.loads(line) for line in metrics[: metrics.rfind("\n") + 1].splitlines()]
    return [(line["step"] // per_epoch, line["evaluation"]["accuracy"]) for line in lines if "evaluation" in line]


@dataclass
class Contestant:
    """A process that trains, and the file in which its evaluations appear."""

    name: str
    command: list[str]
    file: Path
    read: Callable[[str], Curve]
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    seconds: float = 0.0

    def start(self, threads: int, cores: Sequence[int], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Starts it, on some of the cores where these are given."""
        pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
        variables = environment(KEEP_FREED) | {"OMP_NUM_THREADS": str(threads)}
        return subprocess.Popen([*pinned, *self.command], cwd=ROOT, env=variables, stdout=log, stderr=log)

    def look(self, began: float) -> None:
        """Notes what is new, as (epoch, seconds since it began, accuracy)."""
        self.seconds = time.perf_counter() - began
        found = self.read(self.file.read_text()) if self.file.exists() else []
        for epoch, accuracy in found[len(self.curve) :]:
            self.curve.append((epoch, round(self.seconds, 1), accuracy))
            print(f"{self.name}: epoch {epoch}, {self.seconds:.0f} s, {accuracy:.2%}", file=sys.stderr, flush=True)


def train(contestants: list[Contestant], threads: int, cores: list[list[int]]) -> dict[str, str]:
    """Runs them at the same time; returns why those that fail did."""
    errors: dict[str, str] = {}
    with ExitStack() as stack:
        running = []
        for contestant, own in zip(contestants, cores, strict=True):
            log = stack.enter_context(tempfile.TemporaryFile())
            process = stack.enter_context(contestant.start(threads, own, log))
            stack.callback(process.kill)
            running.append((contestant, process, log, time.perf_counter()))
        while running:
            time.sleep(1)
            for one in list(running):
                contestant, process, log, began = one
                code = process.poll()
                contestant.look(began)
                if code is not None:
                    running.remove(one)
                if code:
                    log.seek(0)
                    errors[contestant.name] = f"status {code}\n{log.read().decode(errors='replace')[-2000:]}"
    return errors


def unpacked(data: Path, folder: Path) -> Path:
    """The folder with train/ and test/: the one given, or what is in the archive."""
    if data.is_file():
        with tarfile.open(data) as archive:
            archive.extractall(folder, filter="data")
        data = folder
    for place in (data, *sorted(data.glob("*"))):
        if (place / "train").is_dir() and (place / "test").is_dir():
            return place.resolve()
    raise ValueError(f"{data} has no folders train and test")


def epochs_in(minutes: float, train_images: int, test_images: int, threads: int) -> int:
    """How many epochs, with ten evaluations, fit into the time; measured on a bare loop."""
    import torch

    torch.set_num_threads(threads)
    setting = cifar10(epochs=10, seed=0, mix=0.0)
    case = Case(setting.shape, setting.batch, warm=2, steps=6)
    ends = bare(case, Path(), case.steps, 0)["ends"]
    seconds = LOADING * (ends[-1] - ends[case.warm - 1]) / (case.steps * case.batch)
    left = 60 * minutes - 10 * test_images * seconds / 3
    return max(2, int(left / (train_images * seconds)))


def contest(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything, from the archive to the two curves."""
    from vitrail import run

    data = unpacked(options.data, folder / "data")
    images, tests = (sum(path.is_file() for path in (data / name).rglob("*")) for name in ("train", "test"))
    threads = max(1, options.threads // 2) if options.side_by_side else options.threads
    epochs = options.epochs or epochs_in(options.minutes, images, tests, threads)
    setting = SETTINGS[options.data_set](epochs, options.seed, options.mix)
    per_epoch = images // setting.batch
    print(f"{images:,} images, {tests:,} to test on, {epochs} epochs of {per_epoch} steps", file=sys.stderr, flush=True)
    ours = our_run(setting, data, per_epoch)
    run.write(ours, folder / "vitrail")
    arguments = timm_arguments(setting, data, folder / "timm", options.workers)
    if options.same_start:
        arguments += ["--initial-checkpoint", str(first_weights(ours, folder))]
    both = {
        "vitrail": Contestant(
            "vitrail",
            [sys.executable, "-c", OURS, str(folder / "vitrail")],
            folder / "vitrail" / "metrics.jsonl",
            lambda text: our_accuracies(text, per_epoch),
        ),
        "timm": Contestant(
            "timm",
            [sys.executable, str(options.timm_script.resolve()), *arguments],
            folder / "timm" / "summary.csv",
            timm_script.accuracies,
        ),
    }
    chosen = [contestant for name, contestant in both.items() if options.only in (None, name)]
    if options.side_by_side:
        cores = sorted(os.sched_getaffinity(0))
        errors = train(chosen, threads, [cores[i * threads : (i + 1) * threads] for i in range(len(chosen))])
    else:
        errors = {name: why for one in chosen for name, why in train([one], threads, [[]]).items()}
    results = {c.name: {"seconds": round(c.seconds, 1), "curve": c.curve} for c in chosen}
    settings = asdict(setting) | {"threads": threads, "side_by_side": options.side_by_side, "images": [images, tests]}
    settings |= {"same_start": options.same_start, "timm_arguments": [w.replace(str(folder), "") for w in arguments]}
    return {"settings": settings, "results": results, "errors": errors}


def first_weights(ours: Run, folder: Path) -> Path:
    """The weights that our run begins with, in timm's names."""
    import torch
    from safetensors.torch import save_file

    from vitrail.models.vit import ViT

    model = ViT(ours.model)
    model.init_weights(torch.Generator().manual_seed(ours.seed))
    save_file(model.state_dict(), folder / "start.safetensors")
    return folder / "start.safetensors"


def text(document: dict[str, Any]) -> str:
    """The result as markdown."""
    rows = []
    for name, result in document["results"].items():
        accuracies = [accuracy for _, _, accuracy in result["curve"]] or [float("nan")]
        rows.append([name, f"{accuracies[-1]:.2%}", f"{max(accuracies):.2%}", f"{result['seconds']:.0f}"])
    settings = document["settings"]
    how = "side by side, each on its own cores" if settings["side_by_side"] else "one after the other"
    head = f"{settings['epochs']} epochs, {settings['threads']} threads each, {how}"
    failures = [f"{name} failed: {why}" for name, why in document["errors"].items()]
    headers = ["library", "accuracy at the end", "best on the way", "seconds"]
    return "\n\n".join([headline(document["machine"]), head, table(headers, rows), *failures])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 something failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data_set", choices=list(SETTINGS))
    parser.add_argument("--data", type=Path, required=True, metavar="PATH", help="archive or folder of train/, test/")
    parser.add_argument("--timm-script", type=Path, required=True, metavar="PATH", help="its train.py")
    parser.add_argument("--minutes", type=float, default=60.0, help="for each of the two; decides the epochs")
    parser.add_argument("--epochs", type=int, help="instead of minutes")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of both together, side by side")
    parser.add_argument("--side-by-side", action="store_true", help="at the same time, each on half of the cores")
    parser.add_argument("--same-start", action="store_true", help="timm begins with our initial weights")
    parser.add_argument("--mix", type=float, default=0.0, help="share of pairs that Mixup and CutMix mix")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images for timm")
    parser.add_argument("--only", choices=["vitrail", "timm"], help="one of the two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keeps both runs there, for benchmarks.transfer")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.epochs is not None and options.epochs < 2:
        parser.error(f"epochs ({options.epochs}) must be 2 or more: the first is the warm-up")
    machine = describe()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.keep or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            document = {"benchmark": "accuracy", "machine": machine, **contest(options, folder.resolve())}
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print(f"benchmarks.accuracy: {error}", file=sys.stderr)
        return 2
    write_json(options.json, document)
    print(text(document))
    return int(bool(document["errors"]))


if __name__ == "__main__":
    sys.exit(main())

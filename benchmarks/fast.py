"""Time to accuracy on small images: our `fast` recipe, a bare AdamW loop, and timm's script.

    python -m benchmarks.fast fashion_mnist --data fashion-mnist --timm-script train.py --json fast.json
    python -m benchmarks.fast cifar10 --data cifar10.tar.gz --timm-script train.py --seeds 0 --side-by-side

Every runner is a process of its own, from its start to its last evaluation on the test images, one after the other on
all cores, or, --side-by-side, each on a core of its own. timm's script and the bare loop train the same model; nobody
was tuned on the seeds that are shown but by those who wrote them. The bare loop's cosine ends when its time does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import timm_script
from benchmarks.accuracy import unpacked
from benchmarks.machine import ROOT, describe, headline, table, usable_cores, write_json
from benchmarks.pool import KEEP_FREED, environment
from benchmarks.timm_script import Shape

SMOOTHING, DECAY = 0.1, 0.05


@dataclass(frozen=True)
class Setting:
    """A data set: the model of the peers, how long `fast` trains, and the peers' own numbers.

    epochs: of timm's script, which took 27 minutes of one core. scale: of its random crops; mild ones learn faster.
    """

    shape: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    durations: tuple[str, ...]
    epochs: int
    shift: int
    lr: float = 1.5e-3
    batch: int = 64
    scale: tuple[float, float] = (0.8, 1.0)


SETTINGS = {
    "fashion_mnist": Setting(
        Shape(28, 7, 128, 4, 4, channels=1),
        (0.286,),
        (0.353,),
        ("2.2 epochs", "3.2 epochs"),
        epochs=8,
        shift=1,
    ),
    "cifar10": Setting(
        Shape(32, 8, 128, 6, 4),
        (0.491, 0.482, 0.447),
        (0.247, 0.243, 0.262),
        ("2.2 epochs",),
        epochs=6,
        shift=2,
        lr=1e-3,
    ),
}


@dataclass
class Job:
    """A process that trains, what it is called, and what came of it."""

    name: str
    seed: int
    command: list[str]
    result: Path
    seconds: float = 0.0
    accuracy: float | None = None
    error: str = ""
    curve: list[tuple[int, float]] = field(default_factory=list)

    def start(self, core: int | None) -> subprocess.Popen[bytes]:
        """Starts it, on one core or on all."""
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        variables = environment(KEEP_FREED) | {"OMP_NUM_THREADS": str(1 if pinned else usable_cores())}
        log = self.result.with_suffix(".log")
        with self.result.open("wb") as out, log.open("wb") as errors:
            return subprocess.Popen([*pinned, *self.command], cwd=ROOT, env=variables, stdout=out, stderr=errors)

    def end(self, code: int, seconds: float) -> None:
        """Reads what it found."""
        self.seconds = round(seconds, 1)
        summary = self.result.with_suffix("") / "summary.csv"
        if code:
            self.error = self.result.with_suffix(".log").read_text(errors="replace")[-1500:]
        elif summary.exists():  # timm's
            self.curve = timm_script.accuracies(summary.read_text())
            self.accuracy = self.curve[-1][1]
        else:
            found = json.loads(self.result.read_text())
            self.accuracy = found.get("metrics", found)["accuracy"]
        done = self.error or f"{self.accuracy:.2%}"
        print(f"{self.name}, seed {self.seed}: {done} after {seconds:.0f} s", file=sys.stderr, flush=True)


def run_all(jobs: Sequence[Job], cores: Sequence[int | None]) -> None:
    """Each job on the first core that is free, in order."""
    waiting, free, running = list(jobs), list(cores), []
    try:
        while waiting or running:
            while waiting and free:
                job, core = waiting.pop(0), free.pop(0)
                running.append((job, core, job.start(core), time.perf_counter()))
            time.sleep(0.2)
            for one in list(running):
                job, core, process, began = one
                if (code := process.poll()) is not None:
                    job.end(code, time.perf_counter() - began)
                    running.remove(one)
                    free.append(core)
    finally:
        for _, _, process, _ in running:
            process.kill()
            process.wait()


def bare(name: str, data: str, seconds: float, seed: int) -> float:
    """The loop that most people write: AdamW, cosine, flips and shifts, all images in memory. Returns the accuracy."""
    import math

    import torch
    import torch.nn.functional as F

    from vitrail.models.vit import ViT

    setting, began = SETTINGS[name], time.perf_counter()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(seed)
    (images, targets), (tests, truths) = (_tensors(data, setting, split) for split in ("train", "val"))
    model, by = ViT(setting.shape.vitrail()), setting.shift
    kernels = [p for n, p in model.named_parameters() if p.ndim > 1 and n.endswith("weight")]
    others = [p for n, p in model.named_parameters() if not (p.ndim > 1 and n.endswith("weight"))]
    groups = [{"params": kernels, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=setting.lr, fused=True)
    size, order = setting.shape.size, torch.randperm(len(images))
    rows, place, gone = torch.arange(size), 0, 0.0
    while (gone := (time.perf_counter() - began) / seconds) < 1:
        rate = min(1.0, 20 * gone) * (1 + math.cos(math.pi * gone)) / 2
        for group in optimizer.param_groups:
            group["lr"] = setting.lr * rate
        if place + setting.batch > len(order):
            order, place = torch.randperm(len(images)), 0
        chosen, place = order[place : place + setting.batch], place + setting.batch
        x = F.pad(images[chosen], (by,) * 4)
        down, across = (torch.randint(0, 2 * by + 1, (len(chosen), 1)) + rows for _ in "yx")
        count, channels = torch.arange(len(chosen))[:, None, None, None], torch.arange(x.shape[1])[:, None, None]
        x = x[count, channels, down[:, None, :, None], across[:, None, None, :]]
        x = torch.where(torch.rand(len(chosen), 1, 1, 1) < 0.5, x.flip(-1), x)
        loss = F.cross_entropy(model(x), targets[chosen], label_smoothing=SMOOTHING)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(tests.split(500), truths.split(500), strict=True)
        )
    return right / len(tests)


def _tensors(data: str, setting: Setting, split: str) -> tuple[Any, Any]:
    """All images, normalised, and their classes."""
    import numpy as np
    import torch

    from vitrail.data.sources.open import Data, open_splits
    from vitrail.data.sources.source import pixels

    source = getattr(open_splits(Data(data)), split)
    records = [source[i] for i in range(len(source))]
    stacked = np.stack([pixels(content, setting.shape.channels, name) for content, _, name in records])
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (setting.mean, setting.std))
    images = torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)
    return images.contiguous(), torch.tensor([target for _, target, _ in records])


def folders(data: Path, folder: Path, channels: int) -> Path:
    """The data as train/ and test/ with a folder for each class, which is what timm's script reads."""
    from PIL import Image

    from vitrail.data.sources.open import Data, open_splits
    from vitrail.data.sources.source import pixels

    if data.is_file() or (data / "train").is_dir():
        return unpacked(data, folder)
    parts = open_splits(Data(str(data)))
    for split, source in (("train", parts.train), ("test", parts.val)):
        for index in range(len(source)):
            content, target, name = source[index]
            image = pixels(content, channels, name)
            place = folder / split / f"{target:03d}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0] if channels == 1 else image).save(place / f"{index:06d}.png")
    return folder


def script(setting: Setting, path: Path, data: Path, out: Path, epochs: int) -> list[str]:
    """timm's training script: its AdamW, warm-up, cosine, label smoothing, flips and mild random crops."""
    return [
        *(sys.executable, str(path.resolve()), "--data-dir", str(data), "--train-split", "train"),
        *("--val-split", "test", *timm_script.model(setting.shape), *timm_script.SAME),
        *("--mean", *map(str, setting.mean), "--std", *map(str, setting.std), "--hflip", "0.5"),
        *("--scale", *map(str, setting.scale), "--smoothing", str(SMOOTHING), "--clip-grad", "1.0"),
        *("--lr", str(setting.lr), "--weight-decay", str(DECAY), "--warmup-epochs", "1"),
        *("--epochs", str(max(1, epochs - 1)), "--batch-size", str(setting.batch), "--validation-batch-size", "500"),
        *("--workers", "1", "--seed", "0", "--log-interval", "1000", "--checkpoint-hist", "1"),
        *("--output", str(out.parent), "--experiment", out.name),
    ]


def jobs_of(options: argparse.Namespace, folder: Path) -> list[Job]:
    """The script once, then each seed of the others."""
    setting, found = SETTINGS[options.data_set], []
    data = unpacked(options.data, folder / "data") if options.data.is_file() else options.data
    if not data.exists():
        raise ValueError(f"{data} does not exist; name a folder of images, or an archive")
    if options.timm_script:
        plain, out = folders(data, folder / "folders", setting.shape.channels), folder / "timm"
        epochs = options.epochs or setting.epochs
        found.append(Job("timm", 0, script(setting, options.timm_script, plain, out, epochs), folder / "timm.out"))
    for seed in options.seeds:
        for seconds in options.bare_seconds:
            words = ["--worker", options.data_set, str(data), str(seconds), str(seed)]
            command = [sys.executable, "-m", "benchmarks.fast", *words]
            found.append(Job(f"bare, {seconds:g} s", seed, command, folder / f"bare-{seconds:g}-{seed}.out"))
        for duration in options.durations or setting.durations:
            name = f"fast-{duration.replace(' ', '-')}-{seed}"
            command = [sys.executable, "-m", "vitrail", "train", "fast", "--data", str(data), "--json"]
            command += ["--duration", duration, "--seed", str(seed), "--out", str(folder / name)]
            found.append(Job(f"fast, {duration}", seed, command, folder / f"{name}.out"))
    return found


def summary(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """One object a runner: its seconds and accuracies by seed, and their medians."""
    found = []
    for name in dict.fromkeys(job.name for job in jobs):
        of = [job for job in jobs if job.name == name and job.accuracy is not None]
        if of:
            seconds, accuracies = [job.seconds for job in of], [job.accuracy for job in of]
            medians = {"median_seconds": statistics.median(seconds), "median": statistics.median(accuracies)}
            found.append({"runner": name, "seconds": seconds, "accuracies": accuracies, **medians})
    return found


def text(document: dict[str, Any]) -> str:
    """The result as markdown; each `fast` beside each peer: its share of the time, and the points that it is ahead."""
    rows, found = [], document["summary"]
    peers = [row for row in found if not row["runner"].startswith("fast")]
    for row in found:
        cells = [row["runner"], ", ".join(f"{a:.2%}" for a in row["accuracies"])]
        cells += [f"{row['median']:.2%}", ", ".join(f"{s:.0f}" for s in row["seconds"])]
        for peer in peers:
            share, ahead = row["median_seconds"] / peer["median_seconds"], row["median"] - peer["median"]
            cells.append("" if row in peers else f"{share:.2f} of its time, {100 * ahead:+.2f} points")
        rows.append(cells)
    headers = ["runner", "accuracy by seed", "median", "seconds", *(f"beside {peer['runner']}" for peer in peers)]
    failures = [f"{job['name']}, seed {job['seed']} failed: {job['error']}" for job in document["jobs"] if job["error"]]
    how = "each on one core" if document["settings"]["side_by_side"] else "one after the other, on all cores"
    return "\n\n".join([headline(document["machine"]), how, table(headers, rows), *failures])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.fast", description=(__doc__ or "").split("\n")[0])
    found.add_argument("data_set", choices=list(SETTINGS))
    found.add_argument("--data", type=Path, required=True, metavar="PATH", help="MNIST's files, or train/ and test/")
    found.add_argument("--timm-script", type=Path, metavar="PATH", help="its train.py")
    found.add_argument("--epochs", type=int, help="of timm's script")
    found.add_argument("--bare-seconds", type=float, nargs="*", default=[400.0])
    found.add_argument("--durations", nargs="*", help='of `fast`, such as "2 epochs"')
    found.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found.add_argument("--side-by-side", action="store_true", help="each runner on one core, as many as there are")
    found.add_argument("--json", type=Path, metavar="FILE")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 something failed, 2 bad input, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["--worker"]:
        name, data, seconds, seed = arguments[1:]
        print(json.dumps({"accuracy": bare(name, data, float(seconds), int(seed))}))
        return 0
    options = parser().parse_args(arguments)
    cores: list[int | None] = sorted(os.sched_getaffinity(0)) if options.side_by_side else [None]
    document: dict[str, Any] = {"benchmark": "fast", "machine": describe()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            jobs = jobs_of(options, Path(folder).resolve())
            run_all(jobs, cores)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print(f"benchmarks.fast: {error}", file=sys.stderr)
        return 2
    settings = asdict(SETTINGS[options.data_set]) | {"side_by_side": options.side_by_side}
    kept = [{k: v for k, v in asdict(job).items() if k not in ("command", "result")} for job in jobs]
    document |= {"settings": settings, "jobs": kept, "summary": summary(jobs)}
    write_json(options.json, document)
    print(text(document))
    return int(any(job.error for job in jobs))


if __name__ == "__main__":
    sys.exit(main())

"""A Run: everything about a run in one frozen value, written into the run folder and read back.

run = recipes.demo.demo()
write(run, folder, {"train": fingerprint(source)})      # run.json: the run, versions, machine, what the data was
run = read(folder)                                      # equal to what was written
changes(folder, {"train": fingerprint(source)})         # what is not as it was, in words
"""

import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.modules.dropout import _DropoutNd

from vitrail.config import UnknownKind, dump, kinds, parse
from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.fingerprint import code
from vitrail.data.sources.open import Data
from vitrail.data.sources.source import Source
from vitrail.evaluate import Evaluator
from vitrail.log import Watch
from vitrail.models import resnet, vit
from vitrail.models.cost import activations, parameters
from vitrail.optim.build import Config as OptimConfig
from vitrail.optim.schedule import Duration, steps_of
from vitrail.progress import few
from vitrail.runtime import fp8
from vitrail.runtime.blocks import Precision, checkpoint_blocks, compile_blocks
from vitrail.runtime.devices import watch
from vitrail.runtime.distributed import Ranks
from vitrail.runtime.folders import claim
from vitrail.runtime.threads import share_out
from vitrail.tasks import ClassifyConfig, Task, TaskConfig
from vitrail.tasks.distill import Distill
from vitrail.weights.hub import resolve
from vitrail.weights.load import instantiate
from vitrail.weights.load import read as read_weights
from vitrail.weights.start import start as begun

PACKAGES = ("torch", "numpy", "pillow", "vitrail")


@dataclass(frozen=True)
class Run:
    """What is trained, on what, how and for how long. Recipes are functions that return one."""

    recipe: str
    model: vit.Config | resnet.Config
    preprocessing: Preprocessing
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    task: TaskConfig = field(default_factory=ClassifyConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    start: str | None = None
    """Weights to start from: any file or folder that `vitrail predict` reads; None is from scratch."""
    head: Literal["zero", "probe"] = "zero"
    """Where the weights to start from have other classes. zero: the paper's. probe: a linear probe of the weights, by
    ridge regression, which reads up to 10,000 training images once."""
    batch: int = 64
    """Images in a step."""
    micro_batch: int | None = None
    """Images that go through the model together; the gradient is that of the batch. None: all of them."""
    duration: Duration = "10 epochs"
    """Of the training: "10 epochs", "5000 steps", "1_000_000 examples"."""
    seed: int = 0
    """Decides the initial values, the order of the images, their augmentation and dropout."""
    ema: float = 0.0
    """The decay of a moving average of the weights, which is then what is evaluated and saved; 0 is none."""
    precision: Precision = "auto"
    """Of the products; weights stay in fp32. auto: bf16 on a GPU that has it, fp32 otherwise. fp64: all of it. fp8: the
    blocks' linear layers, the rest bf16, on a GPU that has it (Hopper, Ada and newer; not yet tried on one)."""
    compile: bool = False
    """Whether torch.compile makes the blocks faster, for a minute of compiling."""
    checkpointing: bool = False
    """Activation checkpointing: a third more time for a fraction of the memory."""
    workers: int | None = None
    """Processes that prepare images; 0 is threads. None: threads on a CPU, up to 16 processes beside a GPU."""
    log_every: int = 10
    """Steps."""
    evaluate_every: Duration = "1 epoch"
    """On the validation images; the end is always evaluated."""
    evaluate: tuple[Evaluator, ...] = ()
    """What judges the task then; empty: what the task names itself."""
    checkpoint_every: Duration = "200 steps"
    """To the disk; the end is always kept."""
    keep: int = 2
    """Newest checkpoints that stay on the disk, besides the best."""
    tensorboard: bool = False
    """Whether TensorBoard's files are written, too (pip install tensorboard)."""
    device: str = "auto"
    """auto is the GPU where there is one."""
    shard: int = 1
    """Processes among which weights, gradients and optimiser state are divided (FSDP): 1 is none, each has all; 0 is
    all of them; else groups of so many (HSDP)."""
    exact: bool = False
    """The same bits on any number of processes and cores of one kind: sums that do not depend on their order, of
    micro-batches that are fixed (an eighth of the batch, where none is named). It costs time."""

    def __post_init__(self) -> None:
        for name in ("batch", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more.")
        if self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be from 1 to the batch of {self.batch}.")
        if self.shard < 0:
            raise ValueError(f"shard is {self.shard}; it is a number of processes, or 0 for all.")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers is {self.workers}; it must be 0 or more.")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more, and below 2**64.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must be 0 (none) or more, and below 1, such as 0.9999.")
        channels = len(self.preprocessing.mean)
        if channels != self.model.channels:
            raise ValueError(f"the preprocessing has {channels} channels, the model reads {self.model.channels}.")
        if self.augment.mixup + self.augment.cutmix and self.batch == 1:
            raise ValueError("images are mixed in pairs, but the batch is 1; give a batch of 2 or more.")

    @property
    def part(self) -> int:
        """Images in a micro-batch on one process."""
        eighth = -(-self.batch // 16) * 2 if self.exact else self.batch  # even: images are mixed in pairs
        return self.micro_batch or min(eighth, self.batch)

    def steps(self, field: str, examples: int, total: int | None = None) -> int:
        """How many steps a field's duration is. examples: in an epoch. total: of the run. ValueError where none."""
        found = steps_of(getattr(self, field), total=total, batch=self.batch, examples=examples)
        if found < 1:
            raise ValueError(f"{field} is {getattr(self, field)!r}; it must be a step or more, such as '1 epoch'.")
        return found

    def evaluators(self) -> tuple[Evaluator, ...]:
        """What judges the task."""
        return self.evaluate or tuple(kinds(Evaluator)[name]() for name in self.task.evaluators)

    def score(self, metrics: Mapping[str, float]) -> float:
        """What chooses the best checkpoint, higher being better. ValueError where no evaluator has measured it."""
        name = next((name for name in self.task.best if name in metrics), None)
        if name is None:
            wanted = " or ".join(self.task.best)
            raise ValueError(f"the best checkpoint is chosen by {wanted}, but the evaluators found {few(metrics)}.")
        return -metrics[name] if self.task.lower_is_better else metrics[name]


def write(run: Run, folder: Path, data: Mapping[str, Any] | None = None) -> None:
    """Makes the run folder with run.json in it. data: fingerprints by split. ValueError where the folder exists."""
    record(run, claim([folder]), data)


def record(run: Run, folder: Path, data: Mapping[str, Any] | None = None) -> None:
    """Writes run.json into a folder that is claimed."""
    machine = {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()}
    _put(folder, {"run": dump(run), "versions": versions(), "code": code(), "data": data or {}, "machine": machine})


def read(folder: Path) -> Run:
    """The Run of a run folder. ValueError where there is none, or run.json is damaged."""
    return _read(folder)[0]


def changes(folder: Path, data: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What is not as it was when the run began, in words: (of the data, of the code and the packages)."""
    record = _read(folder)[1]
    found = []
    for split, before in record.get("data", {}).items():
        after = data.get(split, {})
        for name, old in before.items():
            new = after.get(name)
            if old != new and isinstance(old, list) and isinstance(new, list):
                gone, come = [v for v in old if v not in new], [v for v in new if v not in old]
                found.append(f"the {split} {name} (gone: {few(gone)}; new: {few(come)})")
            elif old != new:
                words = f"{old:,} before, {new:,} now" if isinstance(old, int) and isinstance(new, int) else "differ"
                found.append(f"the {split} {name} ({words})")
    then, now = record.get("versions", {}), versions()
    others = [f"{name} ({then[name]} before, {now.get(name)} now)" for name in then if then[name] != now.get(name)]
    return found, others + (["the code of vitrail"] if record.get("code", code()) != code() else [])


def build(run: Run, source: Source, start: bool = True) -> tuple[Task, bool, str]:
    """(the task with its weights, on the CPU; whether its head is that of what it starts from; a line on that). start:
    whether the run's weights to start from are wanted. ValueError where they cannot be read or do not fit."""
    torch.manual_seed(run.seed)  # for what a task has besides its model
    task = run.task.build(run, source)
    if run.precision == "fp8":
        fp8.convert(task)
    if run.checkpointing:
        checkpoint_blocks(task)
    if run.compile:
        compile_blocks(task)
    task.model.to_empty(device="cpu")
    if isinstance(task, Distill):
        taught = read_weights(resolve(task.config.teacher), new_head=task.config.target == "features")
        task.learn_from(instantiate(taught, taught.config)[0], taught.preprocessing)
    task.init_weights(run.seed)
    if not run.start or not start:
        return task, not start, ""
    model, kept, words = begun(resolve(run.start), run.model, task.class_names, run.seed)
    wanted = {n: t for n, t in model.state_dict().items() if kept or not n.startswith("head.")}
    task.model.load_state_dict(wanted, strict=False)  # a new head is the task's
    return task, kept, f"started from {run.start}, {words}"


def cores_for(run: Run, task: Task) -> int:
    """How many cores should compute shares of a batch of their own; 1: one share, each operation on all of them.

    No more than keep the gradients that each has smaller than the activations, which are gone once those are there.
    """
    device, half = next(task.parameters()).device, run.precision in ("bf16", "fp8")
    draws = any(isinstance(part, _DropoutNd) and part.p for part in task.modules())  # of torch's one stream
    if device.type != "cpu" or half or run.compile or run.checkpointing or draws:
        return 1
    part = run.part
    if run.exact:
        return share_out(-(-run.batch // part))
    fits = 1 + part * activations(run.model) // (4 * parameters(run.model))
    return share_out(min(part // 2, fits))


def watched(run: Run, device: torch.device, ranks: Ranks) -> Watch:
    """What tells the log how well a run uses its devices."""
    return watch(run.model, run.preprocessing.image_size, run.precision, device, ranks)


def versions() -> dict[str, str]:
    """Of the packages that a run's numbers depend on; "source" of one that is not installed, but lies there."""
    found: dict[str, str] = dict.fromkeys(PACKAGES, "source")
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def rewrite(run: Run, folder: Path, step: int, data: Mapping[str, Any] | None = None) -> None:
    """Puts a run that was changed after `step` steps into run.json, or fingerprints of its data, which were; it keeps
    what was before."""
    record = _read(folder)[1]
    new = {"run": dump(run)} | ({"data": data} if data else {})
    old = {"until": step} | {name: record.get(name) for name in new}
    _put(folder, {**record, **new, "before": [*record.get("before", ()), old]})


def _put(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes run.json, all or nothing."""
    partial = folder / ".run.json.partial"
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(folder / "run.json")


def _read(folder: Path) -> tuple[Run, dict[str, Any]]:
    path, record = folder / "run.json", dict[str, Any]()
    try:
        record = json.loads(path.read_text())
        return parse(Run, record["run"]), record
    except FileNotFoundError:
        raise ValueError(f"{folder} is not a run folder: it has no run.json.") from None
    except UnknownKind as error:
        file = record["run"]["recipe"].rpartition(":")[0] or "FILE.py"
        raise ValueError(f"{path}: {error}; if it is in a file of yours, let that run first: --code {file}") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); a run cannot be resumed without it.") from error

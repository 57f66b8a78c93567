"""The Trainer: batch -> loss -> backward -> clip -> step -> after_step -> log, evaluate, save when due.

    Trainer(run, folder).fit()      # a new run, or one that stopped: it goes on from its newest checkpoint

A step depends on the Run and its own number alone (law 2), so a run that was killed and resumed is the same run.
"""

import math
import shutil
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from vitrail import checkpoint
from vitrail.batch import Batch
from vitrail.data.loader import REMEMBERED, Training, stream, workers_for
from vitrail.data.order import step_seed
from vitrail.data.sources.open import Parts, open_parts
from vitrail.data.sources.source import counts
from vitrail.evaluate.accuracy import Accuracy
from vitrail.evaluate.results import ClassificationResult
from vitrail.log import Log
from vitrail.models.cost import activations, parameters
from vitrail.models.layers import DropPath
from vitrail.models.vit import Attention, ViT
from vitrail.optim import build as optim
from vitrail.optim.ema import Ema
from vitrail.optim.schedule import multiplier, steps_of
from vitrail.pipeline import Pipeline, locate
from vitrail.run import Run
from vitrail.runtime import fp8
from vitrail.runtime.blocks import autocast, checkpoint_blocks, compile_blocks, uncompiled
from vitrail.runtime.deferred import DeferredMetrics, Mover
from vitrail.runtime.interrupt import Interrupted, stoppable
from vitrail.runtime.threads import Replicas, share_out
from vitrail.tasks.classify import Classify
from vitrail.tasks.task import Metrics, Task
from vitrail.weights.hub import resolve
from vitrail.weights.load import fit, read

LITTLE = 50_000  # images; from scratch, ViTs are behind ResNets up to a million (paper, figure 4)
PHOTO = 64  # pixels a side, from which weights that others trained on photographs are of use
STARTS = "vitrail finetune DATA --weights hf-hub:timm/vit_small_patch16_224.augreg_in21k"

T = TypeVar("T", bound=Task)


class Trainer:
    """Builds everything that a Run describes, and trains. ValueError where run, data and checkpoint do not agree.

    parts: the run's data, where it has been opened already.
    """

    def __init__(self, run: Run, folder: Path, parts: Parts | None = None) -> None:
        self.run, self.folder = run, folder
        self.device = torch.device(pick_device(run.device))
        self.autocast = autocast(run.precision, self.device)
        if run.precision == "fp8":
            fp8.refuse(self.device)
        parts = parts or open_parts(run.data)
        self.train_source, self.val_source = parts.train, parts.val
        self.per_epoch = {"batch": run.batch, "examples": len(self.train_source)}
        self.total = steps_of(run.duration, **self.per_epoch)
        if self.total < 1:
            raise ValueError(f"the duration {run.duration!r} is no training; give it one step or more.")
        # What does not fit is refused now, not when it is due.
        multiplier(run.optim.schedule, 0, self.total, **self.per_epoch)
        self.evaluate, self.save = self._steps("evaluate_every"), self._steps("checkpoint_every")
        self.workers = workers_for(self.device, run.workers)
        self.batches = self._loader()
        self.notes: list[str] = []
        self.result: ClassificationResult | None = None
        self.late = self.device.type == "cuda"  # elsewhere a step's numbers are there when it ends
        # Of the steps since the last line of the log, and of those whose line is due.
        self.recent: list[DeferredMetrics] = []
        self.due: list[DeferredMetrics] = []
        self.task = self._task()
        self.optimizer = optim.build(self.task, run.optim)
        self.ema = Ema(self.task, run.ema) if run.ema else None
        self.writer = checkpoint.Writer(folder / "checkpoints", run.keep)
        newest = checkpoint.newest(folder / "checkpoints")
        self.done = checkpoint.restore(newest, self.task, self.optimizer, self.ema) if newest else 0
        if run.compile:
            compile_blocks(self.task)
        self.replicas = Replicas(self.task, cores_for(run, self.task))

    def fit(self) -> dict[str, float]:
        """Trains what is left, evaluates on the held-back images, writes the model folder; returns the metrics.

        Raises Interrupted after Ctrl-C or SIGTERM, and ValueError where the loss is no longer a number, or the disk is
        full; all leave a checkpoint to go on from.
        """
        try:
            with Log(self.folder, self.total, self.done, tensorboard=self.run.tensorboard) as log, stoppable() as stop:
                for note in self.notes:
                    log.note(self.done, note)
                self._train(log, stop)
                result = self._finish(log)
        except OSError as error:
            raise ValueError(
                f"{self.folder} cannot be written ({error.strerror or error}); make room, then go on with "
                f"`vitrail resume {self.folder}`: its last checkpoint is {self._newest()}."
            ) from error
        return result

    def pipeline(self) -> Pipeline:
        """The model as it is now, with all that it needs to predict."""
        model = self.task.model
        assert isinstance(model, ViT)
        return Pipeline(model, self.run.preprocessing, self.train_source.class_names, self.run.task.loss)

    def _steps(self, field: str) -> int:
        """How often something is done, in steps."""
        often = steps_of(getattr(self.run, field), total=self.total, **self.per_epoch)
        if often < 1:
            raise ValueError(f"{field} is {getattr(self.run, field)!r}; it must be a step or more, such as '1 epoch'.")
        return often

    def _loader(self) -> Training:
        run = self.run
        return Training(
            self.train_source,
            run.preprocessing,
            run.augment,
            batch=run.batch,
            seed=run.seed,
            part=run.micro_batch,
            unreadable=run.data.unreadable,
            block=run.data.block,
            remember=0 if self.workers else REMEMBERED,  # each process would remember for itself
        )

    def _task(self) -> Classify:
        """The model and its loss. Where the run has a checkpoint already, weights to start from are not needed."""
        run, found = self.run, len(self.train_source.class_names)
        if found != run.model.classes:
            raise ValueError(f"{run.data.path} has {found} classes, but the model's head has {run.model.classes}.")
        if self.train_source.multi_label and run.task.loss == "softmax":
            raise ValueError(f"the images of {run.data.path} have several labels; train with --task.loss sigmoid.")
        if run.start and not checkpoint.newest(self.folder / "checkpoints"):
            model, report = fit(read(locate(resolve(run.start))), run.model, new_head=True, seed=run.seed)
            self.notes.append(f"started from {run.start}, {report}")
        else:
            model = ViT(run.model)
            model.init_weights(torch.Generator().manual_seed(run.seed))
        if not run.start and len(self.train_source) < LITTLE and min(run.preprocessing.image_size) >= PHOTO:
            self.notes.append(
                f"training from scratch on {len(self.train_source):,} images: Transformers need more, or a start from "
                f"weights that saw more: {STARTS}"
            )
        task = Classify(
            model, run.preprocessing, run.task, counts(self.train_source) if run.task.class_weights else None
        )
        task.init_head()
        if run.precision == "fp8":
            fp8.convert(task)
        if run.checkpointing:
            checkpoint_blocks(task)
        return task.to(self.device, torch.float64 if run.precision == "fp64" else None)

    def _train(self, log: Log, stop: threading.Event) -> None:
        """The loop."""
        run = self.run
        self.task.train()
        with self.writer, closing(self._batches(log)) as batches:
            if self.done and self.done < self.total and self.done % self.evaluate == 0:
                self._evaluate(log)  # unless it was done: it may have stopped between a checkpoint and this
            for step in range(self.done, self.total):
                self.recent.append(self._step(step, islice(batches, self.batches.parts)))
                self.done = step + 1
                self._write_due(log)
                last = self.done == self.total
                if self.done % run.log_every == 0 or last or stop.is_set():
                    log.mark()
                    self.due, self.recent = self.recent, self.recent[-1:]
                    if not self.late:
                        self._write_due(log)
                saving = last or stop.is_set() or self.done % self.save == 0
                judging = self.done % self.evaluate == 0 and not last
                if saving or judging:
                    self._rest(log, stop, saving, judging)

    def _rest(self, log: Log, stop: threading.Event, saving: bool, judging: bool) -> None:
        """Between two steps: saves, stops, evaluates, once the numbers are known to be good."""
        self._write_due(log)
        self._finite(self.recent)
        paused = time.perf_counter()
        if saving:
            self._save(log)
        if stop.is_set() and self.done < self.total:
            self.writer.wait()
            raise Interrupted(f"stopped after step {self.done} of {self.total}")
        if judging and self._evaluate(log) and not saving:
            self._save(log)
        log.pause(time.perf_counter() - paused)

    def _write_due(self, log: Log) -> None:
        """The line of the log that is due; on a GPU a step late: it has its next step, and does not wait for us."""
        due, self.due = self.due, []
        if due:
            log.step(due[-1].step + 1, self._finite(due))

    def _batches(self, log: Log) -> Generator[Batch, None, None]:
        """The parts of the batches of the steps that are left, on the device; the log learns how long they took."""
        keys, since, move = self.batches.keys(self.done, self.total), time.perf_counter(), Mover(self.device)

        def skipped(problem: str) -> None:
            log.note(self.done, f"skipped: {problem}")

        for batch in stream(self.batches, keys, self.workers, pin=self.device.type == "cuda", skipped=skipped):
            moved = move(batch)
            log.count(len(batch["images"]), time.perf_counter() - since)
            yield moved
            since = time.perf_counter()

    def _step(self, step: int, parts: Iterable[Batch]) -> DeferredMetrics:
        """One update of the weights; nothing in it waits for the device."""
        torch.manual_seed(step_seed(step, self.run.seed))  # dropout's draws, too, follow from (seed, step)
        factor = multiplier(self.run.optim.schedule, step, self.total, **self.per_epoch)
        optim.set_lr(self.optimizer, self.run.optim, factor)
        metrics = accumulate(self.replicas, parts, self.run.batch, self.autocast)
        norm = optim.clip(self.task.parameters(), self.run.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(step)
        self.task.after_step(step)
        return DeferredMetrics(step, {**metrics, "gradient_norm": norm}, {"lr": self.run.optim.lr * factor})

    def _finite(self, readings: Sequence[DeferredMetrics]) -> dict[str, float]:
        """The last one's numbers. ValueError where any loss or norm is none: such weights are never saved."""
        values: dict[str, float] = {}
        for reading in readings:
            values = reading.values()
            loss, norm = values["loss"], values["gradient_norm"]
            if not math.isfinite(loss + norm):
                names = [self.train_source.name(int(index)) for index in self.batches.indices(reading.step)]
                bad = self.folder / "bad-batch.txt"
                bad.write_text("\n".join(names) + "\n")
                raise ValueError(
                    f"the loss is {loss} and the gradient's norm {norm} at step {reading.step + 1}, on "
                    f"{', '.join(names[:3])} and others ({bad} lists all); the last good checkpoint is "
                    f"{self._newest()}. A lower learning rate than {values['lr']:.2g} usually helps: --optim.lr."
                )
        return values

    def _save(self, log: Log) -> None:
        self.writer.save(self.done, checkpoint.tensors(self.task, self.optimizer, self.ema), _best(log.evaluations))

    def _evaluate(self, log: Log) -> bool:
        """Judges the model on the held-back images, once a step; returns whether it is the best so far."""
        if self.done in log.evaluations:
            return False
        log.busy("evaluating")
        with self._judged():
            result = dict(self._judge(log).run(self.task))
        self._tell(log, result)
        return _best(log.evaluations) == self.done

    def _finish(self, log: Log) -> dict[str, float]:
        """The model folder; returns what the last evaluation found, which stays in `result` and `notes`."""
        log.busy("evaluating")
        with self._judged():
            self.result = self._judge(log).examine(self.task)
            self._save_model()
        self.notes = list(log.notes)
        self._tell(log, self.result.metrics)
        return self.result.metrics

    def _judge(self, log: Log) -> Accuracy:
        skip = self.run.data.unreadable == "skip"
        return Accuracy(
            self.val_source,
            workers=self.workers,
            skipped=(lambda problem: log.note(self.done, f"left out: {problem}")) if skip else None,
        )

    def _tell(self, log: Log, result: Mapping[str, float]) -> None:
        log.evaluation(self.done, result)
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in result.items() if name != "samples")
        log.say(f"step {self.done}/{self.total}: {numbers} on {result['samples']:.0f} held-back images")

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """The task as it is judged: with the averaged weights, where there are some, and as it is written."""
        with ExitStack() as stack:
            if self.ema:
                stack.enter_context(self.ema.swapped())
            if self.run.compile:  # else nothing need import the compiler
                stack.enter_context(uncompiled())
            yield

    def _save_model(self) -> None:
        """The model folder, all or nothing."""
        final, partial = self.folder / "model", self.folder / ".model.partial"
        for left in (partial, final):
            shutil.rmtree(left, ignore_errors=True)
        self.pipeline().save(partial)
        partial.rename(final)

    def _newest(self) -> str:
        self.writer.wait()
        return str(checkpoint.newest(self.folder / "checkpoints") or "none")


def _best(evaluations: Mapping[int, Mapping[str, float]]) -> int | None:
    """The step with the highest accuracy, or mean average precision; the first of equals."""
    return max(evaluations, key=lambda s: (score(evaluations[s]), -s), default=None)


def score(result: Mapping[str, float]) -> float:
    """What an evaluation is judged by: more is better."""
    return result["accuracy"] if "accuracy" in result else result["mAP"]


def pick_device(name: str) -> str:
    """ "auto" is the GPU where there is one. ValueError for a device that torch does not have here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda") or (name.startswith("cuda") and not torch.cuda.is_available()):
        raise ValueError(f"the device {name!r} is not available here; use auto or cpu.")
    return name


def accumulate(
    replicas: Replicas[T], parts: Iterable[Batch], total: int, autocast: AbstractContextManager[object]
) -> Metrics:
    """Adds up the gradient of the mean loss over `total` images from the parts of their batch; returns its metrics.

    Each part weighs as many images as it has, so that uneven parts change nothing but rounding.
    """
    sums: dict[str, Tensor] = {}

    def backward(task: Task, batch: Batch) -> Metrics:
        share = len(batch["images"]) / total
        with autocast:
            loss, metrics = task(batch)
        (loss if share == 1 else loss * share).backward()
        return {name: value * share for name, value in metrics.items()}

    for batch in parts:
        for metrics in replicas.map(backward, batch):
            for name, value in metrics.items():
                sums[name] = sums[name] + value if name in sums else value
    replicas.gather()
    return sums


def draws(module: nn.Module) -> bool:
    """Whether a training step of it draws random numbers: dropout of any kind, stochastic depth."""
    return any(
        (isinstance(part, nn.Dropout) and part.p > 0)
        or (isinstance(part, DropPath) and part.rate > 0)
        or (isinstance(part, Attention) and part.attention_dropout > 0)
        for part in module.modules()
    )


def cores_for(run: Run, task: Task) -> int:
    """How many cores should compute shares of a batch of their own; 1: one share, each operation on all of them.

    No more than keep the gradients that each has smaller than the activations, which are gone once those are there.
    """
    device, half = next(task.parameters()).device, run.precision in ("bf16", "fp8")
    if device.type != "cpu" or half or run.compile or run.checkpointing or draws(task):
        return 1
    part = run.micro_batch or run.batch
    fits = 1 + part * activations(run.model) // (4 * parameters(run.model))
    return share_out(min(part // 2, fits))

"""The Trainer: batch -> loss -> backward -> clip -> step -> after_step -> log, evaluate, save when due.

    Trainer(run, folder).fit()      # a new run, or one that stopped: it goes on from its newest checkpoint

A step depends on the Run and its own number alone (law 2), so a run that was killed and resumed is the same run.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from vitrail import checkpoint
from vitrail.batch import Batch
from vitrail.data.loader import training
from vitrail.data.order import step_seed
from vitrail.data.source import open_source
from vitrail.evaluate.accuracy import Accuracy
from vitrail.log import Log
from vitrail.models.vit import ViT
from vitrail.optim import build as optim
from vitrail.optim.schedule import multiplier, steps_of
from vitrail.pipeline import Pipeline
from vitrail.run import Run
from vitrail.tasks.classify import Classify


class Interrupted(Exception):
    """The run was asked to stop, and its state is on the disk."""


class Trainer:
    """Builds everything that a Run describes, and trains. ValueError where run, data and checkpoint do not agree."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.device = torch.device(pick_device(run.device))
        self.train_source = open_source(run.data, "train")
        self.test_source = open_source(run.data, "test")
        found = len(self.train_source.class_names)
        if found != run.model.classes:
            raise ValueError(f"{run.data.path} has {found} classes, but the model's head has {run.model.classes}.")
        model = ViT(run.model)
        model.init_weights(torch.Generator().manual_seed(run.seed))
        self.task = Classify(model, run.preprocessing).to(self.device)
        self.optimizer = optim.build(self.task, run.optim)
        self.per_epoch = {"batch": run.batch, "examples": len(self.train_source)}
        self.total = steps_of(run.duration, **self.per_epoch)
        if self.total < 1:
            raise ValueError(f"the duration {run.duration!r} is no training; give it one step or more.")
        multiplier(run.optim.schedule, 0, self.total, **self.per_epoch)  # refuses a schedule that does not fit, now
        newest = checkpoint.newest(folder / "checkpoints")
        self.done = checkpoint.restore(newest, self.task, self.optimizer) if newest else 0

    def fit(self) -> dict[str, float]:
        """Trains what is left, evaluates on the held-back images, writes the model folder; returns the metrics.

        Raises Interrupted after Ctrl-C or SIGTERM, and ValueError where the loss is no longer a number; both leave a
        checkpoint to go on from.
        """
        run = self.run
        evaluate, save = (
            steps_of(often, total=self.total, **self.per_epoch) for often in (run.evaluate_every, run.checkpoint_every)
        )
        self.task.train()
        with Log(self.folder, self.total, self.done) as log, stoppable() as stop:
            if self.done and self.done % evaluate == 0 and self.done not in log.evaluated:
                self._evaluate(log)  # it stopped between a checkpoint and the evaluation that was due
            for step, batch, waited in self._batches():
                metrics = self._step(step, batch)
                self.done = step + 1
                log.count(run.batch, waited)
                last = self.done == self.total
                if self.done % run.log_every == 0 or last or stop.is_set():
                    log.step(self.done, self._finite(metrics))
                paused = time.perf_counter()
                if last or stop.is_set() or self.done % save == 0:
                    self._finite(metrics)
                    checkpoint.save(self.folder / "checkpoints", self.done, self.task, self.optimizer, run.keep)
                if stop.is_set() and not last:
                    raise Interrupted(f"stopped after step {self.done} of {self.total}")
                if self.done % evaluate == 0 and not last:
                    self._evaluate(log)
                log.pause(time.perf_counter() - paused)
            result = self._evaluate(log)
        self.pipeline().save(self.folder / "model")
        return result

    def pipeline(self) -> Pipeline:
        """The model as it is now, with all that it needs to predict."""
        model = self.task.model
        assert isinstance(model, ViT)
        return Pipeline(model, self.run.preprocessing, self.train_source.class_names)

    def _batches(self) -> Iterator[tuple[int, Batch, float]]:
        """(step, batch on the device, seconds waited for it) for the steps that are left."""
        steps = {"start": self.done, "stop": self.total}
        run = self.run
        batches = training(self.train_source, batch=run.batch, seed=run.seed, how=run.preprocessing, **steps)
        since = time.perf_counter()
        for step, batch in batches:
            moved: Batch = {
                "images": batch["images"].to(self.device, non_blocking=True),
                "targets": batch["targets"].to(self.device, non_blocking=True),
            }
            yield step, moved, time.perf_counter() - since
            since = time.perf_counter()

    def _step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """One update of the weights; returns the metrics, still on the device."""
        torch.manual_seed(step_seed(step, self.run.seed))  # dropout's draws, too, follow from (seed, step)
        factor = multiplier(self.run.optim.schedule, step, self.total, **self.per_epoch)
        optim.set_lr(self.optimizer, self.run.optim, factor)
        loss, metrics = self.task(batch)
        loss.backward()
        norm = optim.clip(self.task.parameters(), self.run.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.task.after_step(step)
        return {**metrics, "lr": torch.tensor(self.run.optim.lr * factor), "gradient_norm": norm.detach()}

    def _finite(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """The metrics as numbers. ValueError where the loss is not one: such weights are never saved."""
        numbers = {name: float(value) for name, value in metrics.items()}
        if not math.isfinite(numbers["loss"] + numbers["gradient_norm"]):
            newest = checkpoint.newest(self.folder / "checkpoints")
            raise ValueError(
                f"the loss is {numbers['loss']} and the gradient's norm {numbers['gradient_norm']} at step "
                f"{self.done}; the last good checkpoint is {newest or 'none'}. A lower learning rate usually helps."
            )
        return numbers

    def _evaluate(self, log: Log) -> dict[str, float]:
        result = dict(Accuracy(self.test_source).run(self.task))
        log.evaluation(self.done, result)
        log.say(
            f"step {self.done}/{self.total}: {result['accuracy']:.1%} of {result['samples']:.0f} held-back images "
            f"right, loss {result['loss']:.3f}"
        )
        return result


def pick_device(name: str) -> str:
    """ "auto" is the GPU where there is one. ValueError for a device that torch does not have here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda") or (name.startswith("cuda") and not torch.cuda.is_available()):
        raise ValueError(f"the device {name!r} is not available here; use auto or cpu.")
    return name


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that a step is never cut in two; a second Ctrl-C stops at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    earlier = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)

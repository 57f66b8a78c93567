"""The Trainer: batch -> loss -> backward -> clip -> step -> after_step -> log, evaluate, save when due.

    Trainer(run, folder).fit()      # a new run, or one that stopped: it goes on from its newest checkpoint

A step depends on the Run and its own number alone (law 2), so a run that was killed and resumed is the same run.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitrail import checkpoint
from vitrail.batch import Batch
from vitrail.data.loader import REMEMBERED, Training
from vitrail.data.order import step_seed
from vitrail.data.sources.open import Splits, open_splits
from vitrail.data.sources.source import Source
from vitrail.data.stream import stream, workers_for
from vitrail.evaluate.evaluator import Result, Validation, evaluating, judge
from vitrail.evaluate.probe import probe
from vitrail.log import Log
from vitrail.models.layers import drawing
from vitrail.optim import build as optim
from vitrail.optim.ema import Ema, load
from vitrail.optim.schedule import multiplier
from vitrail.pipeline import Pipeline
from vitrail.run import Run, build, cores_for, watched
from vitrail.runtime import fp8
from vitrail.runtime.blocks import autocast, halved, pick_device, uncompiled
from vitrail.runtime.deferred import DeferredMetrics, arriving
from vitrail.runtime.distributed import ALONE, LONG, PATIENCE, Gone, Ranks
from vitrail.runtime.folders import filled
from vitrail.runtime.gradients import gradient
from vitrail.runtime.guard import Guard
from vitrail.runtime.inference import batch_size, prepared
from vitrail.runtime.interrupt import Interrupted, stoppable
from vitrail.tasks.task import Metrics, Task


class Trainer:
    """Builds everything that a Run describes, and trains. ValueError where run, data and checkpoint do not agree.

    splits: the run's data, where it has been opened already. ranks: this process among those of the run.
    """

    def __init__(self, run: Run, folder: Path, splits: Splits | None = None, ranks: Ranks = ALONE) -> None:
        self.run, self.folder, self.ranks = run, folder, ranks
        self.device = ranks.device(pick_device(run.device))
        if run.precision == "fp8":
            fp8.refuse(self.device)
        splits = splits or open_splits(run.data, run.task.needs)
        self.train_source, self.val_source = splits.train, splits.val
        self.per_epoch = {"batch": run.batch, "examples": len(self.train_source)}
        self.total = run.steps("duration", len(self.train_source))
        multiplier(run.optim.schedule, 0, self.total, **self.per_epoch)  # what does not fit is refused now
        self.evaluate_every = run.steps("evaluate_every", len(self.train_source), self.total)
        self.save_every = run.steps("checkpoint_every", len(self.train_source), self.total)
        self.workers = workers_for(self.device, run.workers)
        self.batches = self._loader()
        self.notes: list[str] = []
        self.asked, self.rested = False, True
        self.results: dict[str, Result] = {}
        self.late = self.device.type == "cuda"  # elsewhere a step's numbers are there when it ends
        # Of the steps since the last line of the log, and of those whose line is due.
        self.recent: list[DeferredMetrics] = []
        self.due: list[DeferredMetrics] = []
        found = checkpoint.newest(folder / "checkpoints")
        newest = folder / "checkpoints" / name if (name := ranks.texts(found.name if found else "")[0]) else None
        self.task = self._task(start=newest is None)
        self.guard = Guard(self.task.alarm, folder, self.train_source, self.batches.indices, self._newest)
        self.divided = (size := min(run.shard or ranks.world, ranks.world)) > 1
        if self.divided:
            from vitrail.runtime.together import grouped, shard

            half = self.late and not run.exact and run.precision != "fp8" and halved(run.precision, self.device)
            shard(self.task, grouped(self.device.type, size, ranks.world), half)
        self.optimizer = optim.build(self.task, run.optim, run.exact)
        self.ema = Ema(self.task, run.ema) if run.ema else None
        self.writer = checkpoint.Writer(folder / "checkpoints", run.keep, ranks, self.divided)
        self.done = self.saved = checkpoint.restore(newest, self.task, self.optimizer, self.ema) if newest else 0
        self.backward = Backward(run.batch, autocast(run.precision, self.device))
        exact = run.exact * self.batches.count
        if self.divided or (ranks.world > 1 and not exact):
            from vitrail.runtime.together import together

            self.gradient = together(self.task, exact)
        else:
            self.gradient = gradient(self.task, cores_for(run, self.task), ranks.world, exact)

    def fit(self) -> dict[str, float]:
        """Trains what is left, evaluates on the validation images, writes the model folder; returns the metrics.

        Raises Interrupted after Ctrl-C or SIGTERM, and ValueError where an image cannot be read, a process that reads
        them dies, the loss is NaN or infinite, or the disk is full; all leave a checkpoint to go on from.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            how = self.run.tensorboard, not self.ranks.first, watched(self.run, self.device, self.ranks)
            with Log(self.folder, self.total, self.done, *how) as log, stoppable() as self.stop:
                for note in self.notes if self.ranks.first else ():
                    log.note(self.done, note)
                self._train(log)
                return self._finish(log)
        except OSError as error:
            raise ValueError(
                f"{self.folder} cannot be written ({error.strerror or error}); make room, then go on with "
                f"`vitrail resume {self.folder}`: its last checkpoint is {self._newest()}."
            ) from error

    def pipeline(self) -> Pipeline:
        """The model as it is now, with all that it needs to predict."""
        return Pipeline(self.task.finished())

    def _loader(self) -> Training:
        run = self.run
        return Training(
            self.train_source,
            run.preprocessing,
            run.task.views(run.augment),
            partial(run.task.collate, source=self.train_source),
            batch=run.batch,
            seed=run.seed,
            micro_batch=run.part,
            share=(self.ranks.rank, self.ranks.world),
            fixed=run.exact,
            unreadable=run.data.unreadable,
            block=run.data.block,
            remember=0 if self.workers else REMEMBERED,  # each process would remember for itself
        )

    def _task(self, start: bool) -> Task:
        """The task, its weights on the device. start: whether the run's weights to start from are wanted."""
        task, kept, words = build(self.run, self.train_source, start)
        self.notes += [words] if words else []
        self.probing = self.run.head == "probe" and not kept
        return task.to(self.device, torch.float64 if self.run.precision == "fp64" else None)

    def _train(self, log: Log) -> None:
        """The loop."""
        run = self.run
        if self.probing:
            skipped = (lambda problem: None) if run.data.unreadable == "skip" else None  # training names them
            images = replace(self._images(self.train_source, skipped), share=(0, 1))
            task = self._whole() if self.divided else self.task
            log.note(0, probe(prepared(task), images, task.model.head))
            self.ranks.first_ones(task.model.head.parameters())
            load(self.task.model.head, task.model.head.state_dict())
            self.ema = Ema(self.task, run.ema) if run.ema else None
        self.task.train()
        first = run.head == "probe" or run.task.from_start
        with self.writer, closing(self._batches(log)) as batches:
            if self.done < self.total and self.done % self.evaluate_every == 0 and (self.done or first):
                self._evaluate(log)  # unless it was done: it may have stopped between a checkpoint and this
            steps = range(self.done, self.total)
            for step in steps:
                with self._kept(log):
                    self.recent.append(self._step(step, self._parts(batches)))
                self.done = step + 1
                self._write_due(log)
                last = self.done == self.total
                if self.done % run.log_every == 0 or last or self._asked():
                    log.mark()
                    self.due, self.recent = self.recent, self.recent[-1:]
                    if not self.late:
                        self._write_due(log)
                saving = last or self._asked() or self.done % self.save_every == 0
                judging = self.done % self.evaluate_every == 0 and not last
                self.rested = judging or step == steps[0]  # which may take one of them longer: it may compile
                if saving or judging:
                    self._rest(log, saving, judging)

    def _rest(self, log: Log, saving: bool, judging: bool) -> None:
        """Between two steps: saves, stops, evaluates, once the numbers are known to be good."""
        self._write_due(log)
        self.guard(self.recent)
        paused = time.perf_counter()
        if saving:
            self._save(log)
        if self.done < self.total:
            self._stop_if_asked()
        if judging and self._evaluate(log) and not saving:
            self._save(log)
        log.pause(time.perf_counter() - paused)

    def _parts(self, batches: Iterator[Batch]) -> Iterable[Batch]:
        """The micro-batches of a step. Several processes learn here whether one of them was asked to stop."""
        patience = LONG if self.rested else PATIENCE
        parts, self.asked = self.ranks.fetched(islice(batches, self.batches.parts), self.stop.is_set(), patience)
        return parts

    def _asked(self) -> bool:
        """Whether to stop after this step: on several processes, as they have agreed before it."""
        return self.stop.is_set() if self.ranks.world == 1 else self.asked

    def _stop_if_asked(self) -> None:
        if self._asked():
            self.writer.wait()
            raise Interrupted(f"stopped after step {self.done} of {self.total}")

    @contextmanager
    def _kept(self, log: Log) -> Iterator[None]:
        """While data is read, between whole updates of the weights: where it fails, what is done is saved first."""
        try:
            yield
        except (ValueError, Interrupted) as error:
            if isinstance(error, Gone) and (self.divided or self.late):
                raise  # its part of the weights is gone, or a GPU waits for it
            self.guard(self.recent)
            if self.done > self.saved:
                self._save(log)
            self.writer.wait()
            raise

    def _write_due(self, log: Log) -> None:
        """The line of the log that is due; on a GPU a step late: it has its next step, and does not wait for us."""
        due, self.due = self.due, []
        if due and (values := self.guard(due)):
            with self._kept(log):  # it asks the others
                log.step(due[-1].step + 1, values)

    def _batches(self, log: Log) -> Generator[Batch, None, None]:
        """The micro-batches of the steps that are left, on the device; the log learns how long they took."""

        def skipped(problem: str) -> None:
            log.note(self.done, f"skipped: {problem}")

        keys, pin = self.batches.keys(self.done, self.total), self.device.type == "cuda"
        made = stream(self.batches, keys, self.workers, pin=pin, skipped=skipped)
        return arriving(made, self.device, lambda: self._kept(log), lambda n, s: log.count(n * self.ranks.world, s))

    def _step(self, step: int, parts: Iterable[Batch]) -> DeferredMetrics:
        """One update of the weights; nothing in it waits for the device."""
        torch.manual_seed(step_seed(step, self.run.seed))  # for what a task draws otherwise than by `drawing`
        factor = multiplier(self.run.optim.schedule, step, self.total, **self.per_epoch)
        optim.set_lr(self.optimizer, self.run.optim, factor)
        with self.ranks.meeting():
            metrics = self.gradient(parts, self.backward)
            norm = optim.clip(self.task.parameters(), self.run.optim.clip, self.run.exact)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(step)
        self.task.after_step(step)
        return DeferredMetrics(step, {**metrics, "gradient_norm": norm}, {"lr": self.run.optim.lr * factor})

    def _save(self, log: Log) -> None:
        self.writer.save(
            self.done, checkpoint.tensors(self.task, self.optimizer, self.ema), self._best(log.evaluations)
        )
        self.saved = self.done

    def _best(self, evaluations: Mapping[int, Mapping[str, float]]) -> int | None:
        """The step with the best evaluation, the first of equals; where others judge alone, this process has none."""
        judged = [step for step in evaluations if evaluations[step]]
        return max(judged, key=lambda step: (self.run.score(evaluations[step]), -step), default=None)

    def _evaluate(self, log: Log) -> bool:
        """Judges the model on the validation images, once a step; returns whether it is the best so far."""
        if self.done in log.evaluations:
            return False
        with self._kept(log), self._judged() as task:
            self._judge(log, task)
        return self.ranks.flags(self.ranks.first and self._best(log.evaluations) == self.done, patience=LONG)[0]

    def _finish(self, log: Log) -> dict[str, float]:
        """The model folder; returns what the last evaluation found. `results` and `notes` stay for the run's page."""
        with self._judged() as task:
            metrics = self._judge(log, task)
            if self.ranks.first:
                with filled(self.folder / "model") as place:
                    Pipeline(task.finished()).save(place)
        self.notes = list(log.notes)
        return metrics

    def _judge(self, log: Log, task: Task) -> dict[str, float]:
        """What the run's evaluators find, which the log gets, too; their results stay in `results`."""
        log.busy("evaluating")
        skip = self.run.data.unreadable == "skip"
        skipped = (lambda problem: log.note(self.done, f"left out: {problem}")) if skip else None
        data = self._images(self.val_source, skipped)
        metrics, self.results = judge(self.run.evaluators(), prepared(task), data)
        log.evaluation(self.done, metrics)
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name != "samples")
        log.say(f"step {self.done}/{self.total}: {numbers} on {metrics.get('samples', 0):,.0f} validation images")
        return metrics

    def _images(self, source: Source, skipped: Callable[[str], None] | None) -> Validation:
        run = self.run
        collate = partial(run.task.collate, source=source)
        batch = batch_size(run.model, run.preprocessing.image_size, self.device)
        how = (run.preprocessing, collate, batch, self.device, self.workers, skipped)
        return Validation(
            source, *how, (self.ranks.rank, self.ranks.world), self.ranks.rows, self.train_source, self._stop_if_asked
        )

    @contextmanager
    def _judged(self) -> Iterator[Task]:
        """The task as it is judged: with the averaged weights, where there are some, as it is written, and whole."""
        with ExitStack() as stack:
            task = self._whole() if self.divided else self.task
            stack.enter_context(evaluating(task))
            if self.ema and not self.divided:
                stack.enter_context(self.ema.swapped())
            if self.run.compile:  # else nothing need import the compiler
                stack.enter_context(uncompiled())
            yield task

    def _whole(self) -> Task:
        """A copy of the task, or of its average, that is not divided among processes."""
        task = self._task(start=False)
        load(task, self.ema.tensors if self.ema else self.task.state_dict())
        return task

    def _newest(self) -> str:
        self.writer.wait()
        return str(checkpoint.newest(self.folder / "checkpoints") or "none")


class Backward(NamedTuple):
    """The gradient of the mean loss over `total` images, a micro-batch's part of it: each weighs as many images as it
    has, so that uneven ones change nothing but rounding. model: the task, or what is around it."""

    total: int
    autocast: AbstractContextManager[object]

    def __call__(self, model: nn.Module, task: nn.Module, batch: Batch) -> Metrics:
        weight = len(batch) / self.total
        with self._drawing(task, batch):
            with self.autocast:
                loss, metrics = model(batch)
            (loss if weight == 1 else loss * weight).backward()
        return {name: value.detach() * weight for name, value in metrics.items()}

    @torch.no_grad()
    def embed(self, task: Any, batch: Batch) -> Tensor:
        """What a WholeBatch makes of a micro-batch."""
        with self._drawing(task, batch), self.autocast:
            return task.embed(batch)

    def _drawing(self, task: nn.Module, batch: Batch) -> AbstractContextManager[None]:
        return drawing(task, batch["keys"], task.shown if isinstance(task, Task) else 1)

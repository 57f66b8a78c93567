"""One run to its end, from its first step or from where it stopped: shared by all commands that train.

outcome = begin(run, Path("runs/pets"))
outcome = go_on(Path("runs/pets"), anyway=False)
outcome = settle(run, Path("runs/pets"), "again")   # whichever of the two it needs
print(outcome.text())                               # accuracy 86.9% (85.3% to 88.3%) on 2,000 validation images, ...
"""

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitrail import checkpoint
from vitrail import run as runs
from vitrail.config import dump
from vitrail.data.sources.fingerprint import fingerprint
from vitrail.data.sources.open import Splits, open_splits
from vitrail.data.stream import Lost, Unread
from vitrail.evaluate.headers import look
from vitrail.evaluate.summary import headline, interval
from vitrail.log import read_history
from vitrail.optim.schedule import prolonged
from vitrail.plan import expected, refuse
from vitrail.progress import few, say
from vitrail.report.run_page import write_report
from vitrail.run import Run
from vitrail.runtime import folders
from vitrail.runtime.blocks import pick_device
from vitrail.runtime.distributed import Gone, Ranks, join
from vitrail.runtime.guard import Collapsed
from vitrail.runtime.interrupt import Interrupted
from vitrail.train import Trainer

DIVERGED = "bad-batch.txt"  # what the Trainer leaves where the loss became NaN
AGAIN = "the same command"
# What lets a run go on although the fault stays.
OTHERWISE = {Unread: "--data.unreadable skip", Lost: "--workers 0"}
MEASURED = 8  # images, by whose gradient the time of a run is foretold
LITTLE = 50_000  # images; from scratch, ViTs are behind ResNets up to a million (paper, figure 4)
ADVICE = (
    "Transformers need more, or weights that have seen more to start from: vitrail finetune DATA --weights "
    "hf-hub:timm/vit_small_patch16_224.augreg_in21k"
)
PHOTO = 64  # pixels a side, from which weights that others trained on photographs are of use


@dataclass(frozen=True)
class Outcome:
    """A run that has ended. metrics: of its final evaluation. seconds: None where it had ended before. predicts:
    whether its model has a head."""

    folder: Path
    metrics: Mapping[str, float]
    seconds: float | None = None
    predicts: bool = True

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "run": str(self.folder),
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "metrics": dict(self.metrics),
            "interval": interval(self.metrics),
            "report": str(self.folder / "report.html"),
            "model": str(self.folder / "model"),
        }

    def text(self) -> str:
        """The score, where everything is, and what to type next."""
        after, run = "" if self.seconds is None else f", after {self.seconds:.0f} s", shlex.quote(str(self.folder))
        what = f"predict {run} IMAGE" if self.predicts else f"finetune DATA --weights {run}"
        return (
            f"{headline(self.metrics)} on {self.metrics['samples']:,.0f} validation images{after}\n"
            f"report: {self.folder / 'report.html'}\nmodel: {self.folder / 'model'}\n"
            f"next: vitrail {what}"
        )


def begin(run: Run, folder: Path | None, splits: Splits | None = None, again: str = "", adapt: bool = False) -> Outcome:
    """Trains a new run. folder: None is runs/RECIPE, or the first free one of -2, -3, ... splits: its data, if open
    already. again: the command that resumes it after an interruption. adapt: whether the task may fit it to the data.

    A run that cannot begin leaves no folder. Exits with 130 when interrupted; ValueError, with what to type next, where
    run and data do not agree, the loss became NaN or the disk is full.
    """
    ranks = join()
    if ranks.started:
        if folder is None:
            raise ValueError("torchrun may start it again, so name the folder of the run: --out FOLDER.")
        if ranks.flags(ranks.first and (folder / "run.json").is_file())[0]:
            return go_on(folder, again=again, change=partial(_same, run, folder))
    with ranks.together():
        if folder and ranks.first:
            folders.vacant(folder)  # opening the data may take long
        splits = splits or open_splits(run.data, run.task.needs)
        if ranks.first:
            look(splits, run.data.unreadable == "skip")
        run = run.task.adapt(run, splits.train) if adapt else run
        refuse(run, ranks.device(pick_device(run.device)))
    data = fingerprints(splits)
    _agree(ranks, run, data)
    with ExitStack() as held:
        with ranks.together():
            if ranks.first:
                folder = folders.claim([folder] if folder else folders.numbered(run.recipe.rpartition(":")[2]))
        assert folder
        try:
            with ranks.together():
                if ranks.first:
                    held.enter_context(folders.locked(folder))
                    runs.record(run, folder, data)
            with ranks.together():
                trainer = Trainer(run, folder, splits, ranks)
        except BaseException:
            if ranks.first:
                folders.discard(folder)
            raise
        if not run.start and len(splits.train) < LITTLE and min(run.preprocessing.image_size) >= PHOTO:
            trainer.notes.append(f"training from scratch on {len(splits.train):,} images: {ADVICE}")
        return _fit(trainer, splits, again)


def go_on(
    folder: Path, anyway: bool = False, again: str = "", change: Callable[[Run], Run] = lambda run: run
) -> Outcome:
    """Trains what is left of a run, which may be nothing; raises and exits as `begin` does.

    change: of what does not decide the weights, and of the duration (optim/schedule.py says how the rate goes on).
    ValueError where its data has changed, unless `anyway`; changed code or packages are only reported.
    """
    ranks = join()
    with ranks.together():
        before = runs.read(folder)
        run = change(before)
    if run.duration == before.duration and (metrics := ended(folder)) is not None:
        say(f"{folder} has ended; there is nothing left to train, unless it is given a longer --duration.")
        return Outcome(folder, metrics, predicts=run.model.classes > 0)
    with ExitStack() as held:
        with ranks.together():
            if ranks.first:
                held.enter_context(folders.locked(folder))
            splits = _opened(run, folder)
        found = fingerprints(splits)
        _agree(ranks, run, found)
        data, others = runs.changes(folder, found)
        if data and not anyway:
            raise ValueError(
                f"since {folder} began, {'; '.join(data)} changed: it would be another run; put the data back, name "
                f"its new place with --data.path, or resume it anyway with: {_resume(folder)} --anyway"
            )
        if data or others:
            say(f"since {folder} began, {'; '.join(data + others)} changed: it continues, but may end differently.")
        refuse(run, ranks.device(pick_device(run.device)))
        newest = checkpoint.newest(folder / "checkpoints")
        done = int(newest.name.removeprefix("step-")) if newest else 0
        if run.duration != before.duration:
            run = _prolonged(before, run, done, len(splits.train))
        with ranks.together():
            trainer = Trainer(run, folder, splits, ranks)
        if ranks.first and (run != before or data):
            if run.duration != before.duration:
                (folder / "report.html").unlink(missing_ok=True)  # the run has not ended any more
            runs.rewrite(run, folder, done, found if data else None)
        return _fit(trainer, splits, again)


def _same(run: Run, folder: Path, before: Run) -> Run:
    """The run of the folder, on the processes that are there now. ValueError where what is asked for is another, naming
    what differs."""
    now = replace(before, device=run.device, workers=run.workers, shard=run.shard)
    asked, there = dump(replace(run, model=before.model)), dump(now)
    if other := [name for name in asked if asked[name] != there.get(name)]:
        raise ValueError(f"{folder} holds another run (its {few(other)} differ); name another folder with --out.")
    return now


def _agree(ranks: Ranks, run: Run, data: Mapping[str, Any]) -> None:
    """ValueError unless all processes train the same, with the same; naming the rank and the host that does not."""

    def digest(value: object) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]

    kinds = {"run": digest(dump(run)), "data": digest(data), "kind of device": pick_device(run.device)}
    ranks.same({**runs.versions(), "code of vitrail": runs.code(), **kinds})


def _opened(run: Run, folder: Path) -> Splits:
    try:
        return open_splits(run.data, run.task.needs)
    except ValueError as error:
        if all(Path(place).exists() for place in (run.data.path, run.data.val) if place):
            raise
        moved = f"if it was moved, go on with: {_resume(folder)} --data.path PATH"
        raise ValueError(f"{str(error).rstrip('.')}; {moved}") from None


def _prolonged(before: Run, run: Run, done: int, examples: int) -> Run:
    """The run with its new duration, and the schedule that leads there."""
    old, new = (one.steps("duration", examples) for one in (before, run))
    try:
        schedule = prolonged(run.optim.schedule, done, old, new, batch=run.batch, examples=examples)
    except ValueError as error:
        raise ValueError(f"--duration {run.duration!r} cannot be: {error}.") from None
    say(
        f"{before.duration} = {old:,} steps become {run.duration} = {new:,}: from step {done:,} on, the learning rate "
        "goes to that of a run of this length, over a tenth of the steps that are left"
    )
    return replace(run, optim=replace(run.optim, schedule=schedule))


def ended(folder: Path) -> dict[str, float] | None:
    """The metrics of a run's final evaluation; None for one that has not ended: its page is written last."""
    found = read_history(folder / "metrics.jsonl").evaluations
    if not found or not (folder / "report.html").is_file() or not (folder / "model").is_dir():
        return None
    last = max(steps[-1] for steps, _ in found.values())
    return {name: float(values[-1]) for name, (steps, values) in found.items() if steps[-1] == last}


def settle(run: Run, folder: Path, again: str, splits: Splits | None = None) -> Outcome:
    """The outcome of a run that may have ended, may have been interrupted, or may be new."""
    return go_on(folder, again=again) if folder.exists() else begin(run, folder, splits, again)


def _fit(trainer: Trainer, splits: Splits, again: str) -> Outcome:
    """Trains, after a line that says what; if the run does not reach its end, the last line says how to resume it."""
    run, folder, started = trainer.run, trainer.folder, time.perf_counter()
    size = sum(p.numel() for p in trainer.task.parameters())
    say(
        f"{run.recipe}: {size:,} parameters; {splits.words}; {run.duration} = {trainer.total:,} steps of {run.batch}; "
        f"on {trainer.device}; into {folder}" + (f"; going on after step {trainer.done:,}" if trainer.done else "")
    )
    say("\n".join(splits.said))
    again = again or _resume(folder)
    try:
        if foretold := _expected(trainer):
            say(foretold)
        metrics = trainer.fit()
        with trainer.ranks.together():
            metrics = json.loads(trainer.ranks.texts(json.dumps(metrics))[0])
            if trainer.ranks.first:
                write_report(folder, run, splits.val, trainer.results, metrics, trainer.notes)
    except Interrupted as stop:
        say(f"{stop}; go on with: {again}")
        sys.exit(130)
    except KeyboardInterrupt:  # a second one
        last = checkpoint.newest(folder / "checkpoints")
        say(f"stopped at once; the last checkpoint is {last.name if last else 'none'}; go on with: {again}")
        sys.exit(130)
    except torch.OutOfMemoryError:
        raise ValueError(
            f"{trainer.device} has no memory for steps of {run.micro_batch or run.batch} images; train with a smaller "
            "--micro-batch, which gives the same gradient, or with --checkpointing."
        ) from None
    except (Gone, Collapsed):
        raise
    except ValueError as error:
        left = checkpoint.newest(folder / "checkpoints") and not (folder / DIVERGED).exists()  # it would diverge again
        if left and "vitrail resume" not in str(error):
            other = OTHERWISE.get(type(error), "") if again != AGAIN else ""
            said = f"{str(error).rstrip('.')}; once that is mended, go on with: {again}"
            raise ValueError(said + (f", or else: {again} {other}" if other else "")) from error
        raise
    history = read_history(folder / "metrics.jsonl").evaluations
    probe = {name: float(values[0]) for name, (steps, values) in history.items() if steps[0] == 0}
    if probe and run.score(probe) > run.score(metrics):
        say(f"it was better before its first step: {headline(probe)}; a lower --optim.lr changes it less.")
    return Outcome(folder, metrics, time.perf_counter() - started, run.model.classes > 0)


def _expected(trainer: Trainer) -> str:
    """How long the rest of a run will take, in words, by the gradient of a few images; "" where that is a minute."""
    run, images, left = trainer.run, trainer.batches.images, trainer.total - trainer.done
    some = trainer.batches.indices(trainer.done)[:MEASURED] if left else []
    if not len(some) or run.compile or trainer.ranks.world > 1:
        return ""
    try:
        batch = trainer.batches.collate([images.sample(int(index), int(index)) for index in some]).to(trainer.device)
    except ValueError:  # of an image that cannot be read: training says so, or goes without
        return ""
    kept, seconds = {name: value.clone() for name, value in trainer.task.state_dict().items()}, 0.0
    for count in (2, len(batch)):  # the first time also finds the memory
        part, started = batch.split(count)[0], time.perf_counter()
        trainer.gradient([part], trainer.backward)
        trainer.optimizer.zero_grad(set_to_none=True)
        seconds = (time.perf_counter() - started) / len(part)
        if seconds > 0.5:
            break
    trainer.task.load_state_dict(kept)
    judged = len(trainer.val_source) * (1 + left // trainer.evaluate_every)
    return expected(run, seconds * (left * run.batch + judged / 3))


def fingerprints(splits: Splits) -> dict[str, Any]:
    """What tells later whether the data has changed."""
    return {"train": fingerprint(splits.train), "val": fingerprint(splits.val)}


def _resume(folder: Path) -> str:
    return f"vitrail resume {shlex.quote(str(folder))}"

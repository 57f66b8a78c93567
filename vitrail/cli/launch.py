"""One run to its end, from its first step or from where it stopped: what all commands that train share.

outcome = begin(run, Path("runs/pets"))
outcome = go_on(Path("runs/pets"), anyway=False)
outcome = settle(run, Path("runs/pets"))            # whichever of these it needs, if any
"""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from vitrail import checkpoint
from vitrail import run as runs
from vitrail.cli.results import Outcome, ended
from vitrail.data.sources.fingerprint import fingerprint
from vitrail.data.sources.open import Splits, open_splits
from vitrail.plan import refuse
from vitrail.progress import say
from vitrail.report.run_page import write_report
from vitrail.run import Run
from vitrail.runtime.blocks import pick_device
from vitrail.runtime.interrupt import Interrupted
from vitrail.train import Trainer

DIVERGED = "bad-batch.txt"  # what the Trainer leaves where the loss is no number


def begin(run: Run, folder: Path, splits: Splits | None = None, again: str | None = None) -> Outcome:
    """Trains a new run. splits: its data, where it is open. again: the command that goes on after an interruption.

    The folder is made once it is known that the run can begin. Exits with 130 when interrupted; ValueError, with what
    to type next, where run and data do not agree, the loss is no number or a disk is full.
    """
    splits = splits or open_splits(run.data, run.task.needs)
    refuse(run, torch.device(pick_device(run.device)))
    trainer = Trainer(run, folder, splits)
    runs.write(run, folder, _fingerprints(splits))
    return _fit(trainer, splits, again)


def go_on(folder: Path, anyway: bool = False, again: str | None = None) -> Outcome:
    """Trains what is left of a run, which may be nothing; raises and exits as `begin` does.

    ValueError where its data is not as it was, unless `anyway`; that and other code or packages are said.
    """
    run = runs.read(folder)
    if (metrics := ended(folder)) is not None:
        say(f"{folder} has ended; there is nothing left to train.")
        return Outcome(folder, metrics)
    splits = open_splits(run.data, run.task.needs)
    data, others = runs.changes(folder, _fingerprints(splits))
    if data and not anyway:
        raise ValueError(
            f"since {folder} began there have changed {'; '.join(data)}: it would be another run; put the data back, "
            f"or go on all the same with: {_resume(folder)} --anyway"
        )
    if data or others:
        say(f"since {folder} began there have changed {'; '.join(data + others)}: it goes on, but may end differently.")
    refuse(run, torch.device(pick_device(run.device)))
    return _fit(Trainer(run, folder, splits), splits, again)


def settle(run: Run, folder: Path, again: str) -> Outcome:
    """The outcome of a run that may have ended, may have been interrupted, or may be new."""
    return go_on(folder, again=again) if folder.exists() else begin(run, folder, again=again)


def _fit(trainer: Trainer, splits: Splits, again: str | None) -> Outcome:
    """Trains, between a line that says what and one that says how to go on, should it not reach its end."""
    run, folder, started = trainer.run, trainer.folder, time.perf_counter()
    size = sum(p.numel() for p in trainer.task.parameters())
    say(
        f"{run.recipe}: {size:,} parameters; {splits.words}; {run.duration} = {trainer.total:,} steps of {run.batch}; "
        f"on {trainer.device}; into {folder}" + (f"; going on after step {trainer.done:,}" if trainer.done else "")
    )
    again = again or _resume(folder)
    try:
        metrics = trainer.fit()
        write_report(folder, run, splits.val, trainer.results, metrics, trainer.notes)
    except Interrupted as stop:
        say(f"{stop}; go on with: {again}")
        sys.exit(130)
    except torch.OutOfMemoryError:
        raise ValueError(
            f"{trainer.device} has no memory for steps of {run.micro_batch or run.batch} images; train with a smaller "
            "--micro-batch, which gives the same gradient, or with --checkpointing."
        ) from None
    except ValueError as error:
        left = checkpoint.newest(folder / "checkpoints") and not (folder / DIVERGED).exists()  # it would diverge again
        if left and "vitrail resume" not in str(error):
            raise ValueError(f"{str(error).rstrip('.')}; once that is mended, go on with: {again}") from error
        raise
    return Outcome(folder, metrics, time.perf_counter() - started)


def _fingerprints(splits: Splits) -> dict[str, Any]:
    return {"train": fingerprint(splits.train), "val": fingerprint(splits.val)}


def _resume(folder: Path) -> str:
    return f"vitrail resume {shlex.quote(str(folder))}"

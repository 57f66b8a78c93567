"""The paper's choice of a learning rate (Table 4): a run for each on a part of the training images, judged on the rest.

    tried = choose(choices(run, images, rates), folder)     # a run folder each, FOLDER.choice/lr-0.003
    outcome = settle(at(run, best(tried, run)), folder, AGAIN)

Every step continues where an earlier call was interrupted, so that the same command may be typed again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vitrail import run as runs
from vitrail.cli.launch import AGAIN, DIVERGED, Outcome, ended, settle
from vitrail.evaluate.summary import headline
from vitrail.progress import say
from vitrail.recipes.finetune import at
from vitrail.run import Run

Tried = Mapping[float, Outcome | None]  # by learning rate; None where the loss became NaN


def usable(folder: Path, run: Run, trials: Sequence[Run]) -> bool:
    """Whether the choice and its run can begin in a folder, or continue there after an interruption."""
    wanted = [at(run, trial.optim.lr) for trial in trials]
    going = _fits(folder, wanted) and ended(folder) is None
    return going and all(_fits(_place(folder, trial), [trial]) for trial in trials)


def choose(trials: Sequence[Run], folder: Path) -> Tried:
    """The outcome of each trial. Raises and exits as `begin` does, but for a loss that becomes NaN."""
    tried = dict[float, Outcome | None]()
    for trial in trials:
        place, rate = _place(folder, trial), trial.optim.lr
        try:
            tried[rate] = None if (place / DIVERGED).exists() else settle(trial, place, AGAIN)
        except ValueError:
            if not (place / DIVERGED).exists():
                raise
            say(f"the loss became NaN at learning rate {rate:g}.")
            tried[rate] = None
    return tried


def best(tried: Tried, run: Run) -> float:
    """The rate with the highest score, the first of equals. ValueError where all diverged."""
    scores = {rate: run.score(outcome.metrics) for rate, outcome in tried.items() if outcome}
    if not scores:
        raise ValueError(f"the loss became NaN at every rate ({', '.join(map(str, tried))}); give lower --rates.")
    return max(scores, key=lambda rate: scores[rate])


def table(tried: Tried, chosen: float) -> str:
    """A line for each rate."""
    words = {rate: headline(outcome.metrics) if outcome else "the loss became NaN" for rate, outcome in tried.items()}
    return "\n".join(f"lr {rate:<8g} {said}{'  the best' * (rate == chosen)}" for rate, said in words.items())


def _place(folder: Path, trial: Run) -> Path:
    return folder.with_name(f"{folder.name}.choice") / f"lr-{trial.optim.lr:g}"


def _fits(folder: Path, wanted: Sequence[Run]) -> bool:
    """Whether the folder is free, or that of one of these runs."""
    try:
        return not folder.exists() or runs.read(folder) in wanted
    except ValueError:  # not of a run, or damaged
        return False

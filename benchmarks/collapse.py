"""Whether pre-training that learns nothing is named, and pre-training that learns never is.

    python -m benchmarks.collapse --data FOLDER --runs 20 --steps 300       # --only batch,constant: some

Planted on the small model of `vitrail pretrain`: views without their regulariser, then with a frozen projector, too;
images of one colour; rates of 30 and 1,000 times the recipe's; a batch of 4; a rate that leaves no number. Healthy runs
are of all tasks without a teacher, at 0.3, 1 and 3 times the recipe's rate, each with a seed of its own.
"""

from __future__ import annotations

import re
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import command
from benchmarks.machine import table
from benchmarks.rounds import Record, new, say

if TYPE_CHECKING:
    from vitrail.data.sources.open import Splits

TASKS, RATES = ("views", "mae", "patches"), (1.0, 0.3, 3.0)
Cases = list[tuple[str, dict[str, Any]]]  # tasks, and what is changed
PLANTED: dict[str, Cases] = {
    "regulariser": [("views", {"regulariser": 0.0}), ("views", {"regulariser": 0.0, "frozen": True})],
    "constant": [(task, {"constant": True}) for task in TASKS],
    "rate": [(task, {"rate": rate}) for rate in (30.0, 1000.0) for task in TASKS],
    "batch": [("views", {"batch": 4})],
    "infinite": [("mae", {"rate": 1e20})],
}


def ended(splits: Splits, task: Any, steps: int, folder: Path, **how: Any) -> str:
    """The sentence with which a run ended before its steps were done; "" where it did not."""
    from vitrail import run as runs
    from vitrail.data.sources.source import Arrays
    from vitrail.evaluate.watch import Watch
    from vitrail.recipes.unlabelled import unlabelled
    from vitrail.train import Trainer

    if "constant" in how:
        one = Arrays(np.full((1000, *splits.train[0].image.shape), 90, np.uint8), None, (), "constant")
        splits = replace(splits, train=one, val=one)
    run = unlabelled("data", task, source=splits.train)
    if "regulariser" in how:
        run = replace(run, task=replace(run.task, regulariser=how["regulariser"]))
    often = {"duration": f"{steps} steps", "evaluate_every": f"{steps} steps", "checkpoint_every": "10 steps"}
    few = {"evaluate": (Watch(images=20, bank=20),), "batch": how.get("batch", run.batch), "seed": how.get("seed", 0)}
    run = replace(run, optim=replace(run.optim, lr=run.optim.lr * how.get("rate", 1.0)), log_every=1, **few, **often)
    runs.write(run, folder)
    try:
        trainer = Trainer(run, folder, splits)
        trainer.task.extra.requires_grad_("frozen" not in how)
        trainer.fit()
    except ValueError as error:
        return str(error).replace(f"{folder}/", "")
    return ""


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Each planted run, then the healthy ones."""
    from vitrail.data.sources.open import Data, open_splits

    splits = open_splits(Data(str(options.data)), "none")
    healthy = islice(cycle(product(RATES, TASKS)), options.runs)
    cases = PLANTED | {"healthy": [(task, {"rate": rate, "seed": n}) for n, (rate, task) in enumerate(healthy)]}
    for name, (task, how) in ((name, case) for name in options.only for case in cases[name]):
        with tempfile.TemporaryDirectory() as folder:
            sentence = ended(splits, task, options.steps, Path(folder) / "run", **how)
        records.append(new(f"{name}: {task}, {how}", name, task=task, sentence=sentence))
        say(f"{records[-1]['case']}: {sentence or 'no alarm'}")
        yield


def text(records: list[Record]) -> str:
    """The table, and how many healthy runs were alarmed."""
    steps = [re.search(r"(?:since|at) step (\d+)", record["sentence"]) for record in records]
    rows = [[r["case"], step[1] if step else "", r["sentence"]] for r, step in zip(records, steps, strict=True)]
    healthy = [record["sentence"] for record in records if record["first"] == "healthy"]
    said = f"{sum(map(bool, healthy))} alarms in {len(healthy)} healthy runs; the aim is 0."
    return f"{table(['run', 'since step', 'sentence'], rows)}\n\n{said}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser, names = command.parser("collapse", __doc__, rounds=None), (*PLANTED, "healthy")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="images, with labels or without")
    parser.add_argument("--runs", type=command.positive, default=20, help="healthy ones")
    parser.add_argument("--steps", type=command.positive, default=300)
    parser.add_argument("--only", type=command.names, default=names, help="kinds of runs")
    options = parser.parse_args(arguments)
    command.known(options.only, names, parser)
    return command.run("collapse", options, measure, text)


if __name__ == "__main__":
    sys.exit(main())

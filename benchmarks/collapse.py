"""Whether pre-training that learns nothing is named, and pre-training that learns never is.

    python -m benchmarks.collapse --data FOLDER --runs 20 --steps 300

Planted on the model of `vitrail pretrain`: no regulariser, a frozen projector, images of one colour, 30 and 1,000 times
the rate, a batch of 4, a rate that leaves no number. Healthy: three tasks at 1, 0.3 and 3 times the rate, many seeds.
"""

import re
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import command
from benchmarks.machine import table
from benchmarks.rounds import Record, new, say
from vitrail import run as runs
from vitrail.data.sources.open import Data, Splits, open_splits
from vitrail.data.sources.source import Arrays
from vitrail.evaluate.watch import Watch
from vitrail.recipes.unlabelled import unlabelled
from vitrail.train import Trainer

TASKS, RATES = ("views", "mae", "patches"), (1.0, 0.3, 3.0)
PLANTED: list[tuple[Any, dict[str, Any]]] = [  # tasks, and what is changed
    *(("views", {"regulariser": 0.0, "frozen": frozen}) for frozen in (False, True)),
    *((task, {"constant": True}) for task in TASKS),
    *((task, {"rate": rate}) for rate in (30.0, 1000.0) for task in TASKS),
    *(("views", {"batch": 4}), ("mae", {"rate": 1e20})),
]


def ended(splits: Splits, task: Any, steps: int, folder: Path, rate: float = 1.0, **how: Any) -> str:
    """The sentence with which a run ended before its steps were done; "" where it did not."""
    run = unlabelled("data", task, source=splits.train)
    if how.pop("constant", False):
        one = Arrays(np.full((1000, *run.model.image_size, run.model.channels), 90, np.uint8), None, (), "constant")
        splits = Splits(one, one, "")
    frozen, config = how.pop("frozen", False), {name: how.pop(name) for name in [*how] if name == "regulariser"}
    how |= {"optim": replace(run.optim, lr=run.optim.lr * rate), "task": replace(run.task, **config), "log_every": 1}
    how |= dict.fromkeys(("duration", "evaluate_every"), f"{steps} steps") | {"checkpoint_every": "10 steps"}
    runs.write(run := replace(run, evaluate=(Watch(images=20, bank=20),), **how), folder)
    try:
        trainer = Trainer(run, folder, splits)
        trainer.task.extra.requires_grad_(not frozen)
        trainer.fit()
    except ValueError as error:
        return str(error).replace(f"{folder}/", "")
    return ""


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Each planted run, then the healthy ones."""
    splits = open_splits(Data(str(options.data)), "none")
    cases = [("planted", *case) for case in PLANTED]
    cases += [("healthy", TASKS[n % 3], {"rate": RATES[n // 3 % 3], "seed": n}) for n in range(options.runs)]
    for kind, task, how in cases:
        with tempfile.TemporaryDirectory() as folder:
            found = ended(splits, task, options.steps, Path(folder) / "run", **how)
        records.append(new(f"{kind}: {task}, {', '.join(f'{k} {v}' for k, v in how.items())}", kind, sentence=found))
        say(f"{records[-1]['case']}: {found or 'no alarm'}")
        yield


def text(records: list[Record]) -> str:
    """The table, and how many healthy runs were alarmed."""
    steps = [re.search(r"(?:since|at) step (\d+)", record["sentence"]) for record in records]
    rows = [[r["case"], step[1] if step else "", r["sentence"]] for r, step in zip(records, steps, strict=True)]
    healthy = [bool(record["sentence"]) for record in records if record["first"] == "healthy"]
    count = f"{sum(healthy)} alarms in {len(healthy)} healthy runs; the aim is 0."
    return f"{table(['run', 'since step', 'sentence'], rows)}\n\n{count}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser = command.parser("collapse", __doc__, rounds=None)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--runs", type=command.positive, default=20, help="healthy ones")
    parser.add_argument("--steps", type=command.positive, default=300)
    return command.run("collapse", parser.parse_args(arguments), measure, text)


if __name__ == "__main__":
    sys.exit(main())

"""What pre-training without labels is worth: features, few labels, small batches, whether the loss can be read.

    python -m benchmarks.unlabelled accuracy --data CIFAR10 --tasks views --seeds 0,1,2   neighbours and linear probe
    python -m benchmarks.unlabelled few --data CIFAR10 --seeds 0,1,2,3,4            fine-tuned with 100 labels a class
    python -m benchmarks.unlabelled small --data CIFAR10 --share 0.2                     views at batch 32, 128, 256
    python -m benchmarks.unlabelled readable --data CIFAR10 --share 0.1      12 runs of views: does the loss say kNN?
    python -m benchmarks.unlabelled continued --data FOLDER --start WEIGHTS --seeds 0,1,2           before and after

Training is that of `vitrail pretrain` and judging that of `vitrail evaluate`; nothing is tuned on the validation
images. --share: the part of the recipe's duration that is trained. Random weights of the same shape stand beside. Runs
that are there (--runs) are not done again, so that an interruption loses little. Differences of seeds are paired.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from benchmarks import command
from benchmarks.command import known, names
from benchmarks.machine import table
from benchmarks.rounds import Record, say
from benchmarks.transfer import finished

if TYPE_CHECKING:
    from vitrail.run import Run

TASKS = ("views", "mae", "patches")
LABELS, EPOCHS, RATES = 100, 40, (3e-4, 1e-3, 3e-3)  # of a class; of fine-tuning; to choose from, for each start


def pretraining(options: Namespace, task: str, seed: int = 0, start: str | None = None) -> Run:
    """The recipe's run, `share` of it, judged twenty times as the command does."""
    from vitrail.recipes.unlabelled import unlabelled

    run = unlabelled(options.data, task, options.augment, start)  # type: ignore[arg-type]
    epochs = options.share * float(run.duration.split()[0])
    return replace(run, seed=seed, duration=f"{epochs:g} epochs")


def untrained(options: Namespace, task: str, start: str | None = None) -> Run:
    """The same model as it begins."""
    run = pretraining(options, task, 0, start)
    return replace(run, duration="1 steps", optim=replace(run.optim, lr=0.0))


def judged(folder: Path, data: str, *evaluators: str) -> dict[str, float]:
    """What `vitrail evaluate` finds of a run; kept beside it."""
    kept = folder / f"{'-'.join(evaluators)}.json"
    if not kept.is_file():
        words = [sys.executable, "-m", "vitrail", "evaluate", str(folder), data, "--with", *evaluators, "--json"]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        kept.write_text(done.stdout)
    found = json.loads(kept.read_text())["metrics"]
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def features(options: Namespace, run: Run, name: str, *evaluators: str) -> dict[str, float]:
    """Trains a run, if it is not there, and judges it."""
    folder = options.runs / name
    result = finished(run, folder)
    found = judged(folder, options.data, *evaluators) | {"seconds": result["seconds"]}
    say(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items() if key in (*evaluators, "rank")))
    return found | {f"last_{key}": value for key, value in result["metrics"].items()}


def accuracy(options: Namespace) -> Iterator[Record]:
    """Neighbours and linear probe of each task and seed, and of random weights."""
    for task in options.tasks:
        found = features(options, untrained(options, task), f"{task}-untrained", "knn", "linear")
        yield {"case": f"{task}, random weights", "seed": "", **found}
        for seed in options.seeds:
            found = features(options, pretraining(options, task, seed), f"{task}-{seed}", "knn", "linear")
            yield {"case": task, "seed": seed, **found}


def few(options: Namespace) -> Iterator[Record]:
    """Fine-tuning with few labels from each task's features and from random weights of the same shape; each chooses its
    rate on a fifth of the labelled images of the first seed."""
    for task in options.tasks:
        finished(pretraining(options, task), options.runs / f"{task}-0")
        finished(untrained(options, task), options.runs / f"{task}-untrained")
        for name in (f"{task}-untrained", f"{task}-0"):
            tried = {
                rate: finished(
                    _labelled(options, name, rate, options.seeds[0], choose=True), _place(options, name, rate)
                )
                for rate in RATES
            }
            best = max(tried, key=lambda rate: tried[rate]["metrics"]["accuracy"])
            for seed in options.seeds:
                place = _place(options, name, f"{best:g}-seed-{seed}")
                found = finished(_labelled(options, name, best, seed), place)["metrics"]
                say(f"{name}, rate {best:g}, seed {seed}: {found['accuracy']:.2%}")
                yield {"case": f"{task}: {'scratch' if 'untrained' in name else 'features'}", "seed": seed, **found}


def small(options: Namespace) -> Iterator[Record]:
    """Views with few images in a step, as many images in all; the rate follows the root of the batch."""
    for batch in (32, 128, 256):
        run = pretraining(options, "views")
        run = replace(run, batch=batch, optim=replace(run.optim, lr=run.optim.lr * math.sqrt(batch / 128)))
        yield {
            "case": f"views, batch {batch}",
            "seed": 0,
            **features(options, run, f"views-batch-{batch}", "knn", "linear"),
        }


def readable(options: Namespace) -> Iterator[Record]:
    """Views at three rates, two coefficients and two lengths: does the last loss rank them as their neighbours do?"""
    for rate in (3e-4, 1e-3, 3e-3):
        for regulariser in (0.02, 0.1):
            for part in (1.0, 0.3):
                run = pretraining(Namespace(**vars(options) | {"share": options.share * part}), "views")
                task = replace(run.task, regulariser=regulariser)  # type: ignore[call-arg]
                run = replace(run, task=task, optim=replace(run.optim, lr=rate))
                name = f"views-rate-{rate:g}-regulariser-{regulariser:g}-part-{part:g}"
                found = features(options, run, name, "knn")
                yield {"case": name, "seed": 0, **found, **_losses(options.runs / name)}


def continued(options: Namespace) -> Iterator[Record]:
    """Few-shot and neighbours of weights as they are, and after they have seen the images; each seed its own shots."""
    for task in options.tasks:
        before = features(options, untrained(options, task, options.start), f"{task}-start", "knn", "fewshot")
        yield {"case": f"{task}: before", "seed": "", **before}
        for seed in options.seeds:
            run = pretraining(options, task, seed, options.start)
            yield {
                "case": f"{task}: after",
                "seed": seed,
                **features(options, run, f"{task}-on-{seed}", "knn", "fewshot"),
            }


WHAT: Mapping[str, Callable[[Namespace], Iterator[Record]]] = {
    one.__name__: one for one in (accuracy, few, small, readable, continued)
}


def _labelled(options: Namespace, name: str, rate: float, seed: int, choose: bool = False) -> Run:
    from vitrail.recipes.finetune import at, finetune_small

    run = at(finetune_small(options.data, str(options.runs / name)), rate)
    data = replace(run.data, examples=options.labels * options.classes, examples_seed=seed)
    data = replace(data, val_fraction=0.2, val=None) if choose else data
    how = {"seed": seed, "batch": 64, "duration": f"{EPOCHS} epochs", "evaluate_every": "100%", "data": data}
    return replace(run, optim=replace(run.optim, layer_decay=1.0), **how)


def _place(options: Namespace, name: str, what: float | str) -> Path:
    return options.runs / f"{name}-labels-{what}"


def _losses(folder: Path) -> dict[str, float]:
    """Means over the last tenth of the steps that were logged."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "invariance" in row]
    last = steps[-max(1, len(steps) // 10) :]
    return {key: mean(row[key] for row in last) for key in ("loss", "invariance", "gaussian")}


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Yields after each run."""
    for record in WHAT[options.what](options):
        records.append({"errors": {}, **record})
        yield


def text(records: list[Record]) -> str:
    """A line for each run, what several seeds have in common, and what is paired."""
    shown = [key for key in ("knn", "linear", "accuracy", "rank", "loss", "seconds") if any(key in r for r in records)]
    shown += [key for key in records[0] if key.startswith("fewshot") and key.count("_") == 1] if records else []
    rows = [[r["case"], str(r["seed"]), *(f"{r[key]:.4g}" if key in r else "" for key in shown)] for r in records]
    cases: dict[str, list[Record]] = {}
    for record in records:
        cases.setdefault(record["case"], []).append(record)
    said = []
    for case, several in cases.items():
        for key in ("knn", "linear", "accuracy"):
            values = [100 * r[key] for r in several if key in r]
            if len(values) > 1:
                said.append(f"{case}, {key}: {mean(values):.2f} {interval(values)}")
        scratch = cases.get(case.replace("features", "scratch"), several)
        if scratch is not several:
            gains = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(several, scratch, strict=False)]
            said.append(f"{case} - scratch: {mean(gains):+.2f} points {interval(gains)}")
    if "invariance" in (records[0] if records else {}):
        from scipy.stats import spearmanr

        for key in ("loss", "invariance", "gaussian"):
            found = spearmanr([-r[key] for r in records], [r["knn"] for r in records]).statistic
            said.append(f"rank correlation of -{key} with knn over {len(records)} runs: {found:.2f}")
    return "\n\n".join([table(["", "seed", *shown], rows), "\n".join(said)]).rstrip()


def interval(values: Sequence[float]) -> str:
    """Of their mean, 95 %, by Student's t."""
    if len(values) < 2:
        return ""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return f"({mean(values) - half:.2f} to {mean(values) + half:.2f}, {len(values)} seeds)"


def numbers(value: str) -> tuple[int, ...]:
    """Seeds with commas."""
    return tuple(int(part) for part in names(value))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    from vitrail.data.sources.open import Data, open_splits

    parser = command.parser("unlabelled", __doc__, rounds=None)
    parser.add_argument("what", choices=list(WHAT))
    parser.add_argument("--data", required=True, help="images in class folders, or of any kind that is read")
    parser.add_argument("--tasks", type=names, default=TASKS, help="with commas")
    parser.add_argument("--seeds", type=numbers, default=(0, 1, 2), help="with commas")
    parser.add_argument("--share", type=float, default=1.0, help="of the recipe's duration")
    parser.add_argument("--start", help="weights that `continued` goes on from")
    parser.add_argument("--augment", default="photo")
    parser.add_argument("--labels", type=int, default=LABELS, help="of a class, for `few`")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/unlabelled"), metavar="FOLDER", help="where they are kept"
    )
    options = parser.parse_args(arguments)
    known(options.tasks, TASKS, parser)
    options.classes = len(open_splits(Data(options.data)).train.class_names)
    if options.what == "continued" and not options.start:
        parser.error("continued needs --start WEIGHTS")
    return command.run("unlabelled", options, measure, text)


if __name__ == "__main__":
    sys.exit(main())

"""The commands that judge: how good weights are (evaluate), and what is wrong with data (data check)."""

import json as jsonlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from vitrail.cli.options import Flag

if TYPE_CHECKING:
    from vitrail.data.sources.source import Source
    from vitrail.evaluate import Result
    from vitrail.run import Run

    Found = tuple[dict[str, float], dict[str, Result]]

WORST = 3  # classes that are named


@dataclass
class Evaluate:
    """Measure how good a model is on labelled images.

    Its classes and the data's are matched by name. Exit status: 0 done, 1 where some images could not be read
    (--skip-unreadable), 2 where nothing could be measured.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A run folder such as runs/demo, a model folder, a file with weights, or hf-hub:OWNER/NAME."""
    data: Positional[Annotated[str, arg(metavar="[DATA]", help_behavior_hint="")]] = ""
    """Labelled images, of any kind that vitrail train reads. Without it, of a run: the images that it held back."""
    split: Literal["val", "test", "train"] = "val"
    """Which of the data's images; val is test where there is no val, and all where they are not divided."""
    skip_unreadable: Flag = False
    """Leave out images that cannot be read, and count them."""
    int8: Flag = False
    """Also measure what the model loses with the linear layers of its blocks in 8 bits, as vitrail predict --int8 has
    them; on the CPU."""
    json: Flag = False
    """Print one JSON document: {metrics, samples, interval, per_class}, and with --int8 {int8: {metrics, interval,
    same}}, where same is the share of answers that int8 does not change."""

    def run(self, rest: list[str]) -> None:
        import torch

        from vitrail import run as runs
        from vitrail.config import kinds
        from vitrail.data.stream import workers_for
        from vitrail.evaluate import Evaluator, Validation
        from vitrail.evaluate.evaluator import judge
        from vitrail.pipeline import Pipeline
        from vitrail.progress import say
        from vitrail.runtime.blocks import pick_device
        from vitrail.runtime.inference import batch_size, prepared

        run = runs.read(Path(self.model)) if (Path(self.model) / "run.json").is_file() else None
        task = Pipeline.load(self.model).task
        source = self._source(run)
        if task.config.needs == "classes":
            source = matched(source, task.class_names, self.data or self.model)
        task = task.for_targets(source.targets)
        device = torch.device(pick_device("cpu" if self.int8 or (run and run.device == "cpu") else "auto"))
        skip = self.skip_unreadable or (run is not None and not self.data and run.data.unreadable == "skip")
        evaluators = run.evaluators() if run else [kinds(Evaluator)[name]() for name in task.config.evaluators]
        say(f"evaluating {self.model} on {len(source):,} images, on {device}")
        data = Validation(
            source,
            task.preprocessing,
            partial(task.config.collate, source=source),
            batch_size(task.model.config, task.preprocessing.image_size, device),
            device,
            workers_for(device, run and run.workers),
            say if skip else None,
        )
        found = judge(evaluators, prepared(task.to(device)), data)
        quiet = replace(data, skipped=(lambda _: None) if skip else None)  # it was said once
        small = judge(evaluators, prepared(task, "int8"), quiet) if self.int8 else None
        print(jsonlib.dumps(document(found, small), indent=2) if self.json else text(found, small))
        if found[0].get("unreadable"):
            sys.exit(1)

    def _source(self, run: "Run | None") -> "Source":
        """The images that are asked for, under their own class numbers."""
        from vitrail.data.sources.open import Data, find_splits, open_source

        if run and (not self.data or Path(self.data) == Path(run.data.path)):
            return open_source(replace(run.data, balance=False), self.split)
        if not self.data:
            raise ValueError(f"{self.model} is no run, which would have images of its own; name DATA after it.")
        found = find_splits(Data(self.data))
        wanted = ("val", "test", "all") if self.split == "val" else (self.split,)
        name = next((name for name in wanted if name in found), None)
        if name is None:
            has = "is not divided" if "all" in found else f"has {' and '.join(found)} images"
            raise ValueError(f"{self.data} {has}, so there are none for --split {self.split}.")
        return found[name]


@dataclass
class Check:
    """Look for what is wrong with images and labels before a model is trained on them.

    Unreadable, blank and tiny images; copies across splits, under several labels and twice; classes with few images.
    Every image is read once. Exit status: 0 nothing wrong was found, 1 something was.
    """

    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """The images: class folders, MNIST's or CIFAR's files, a table, a saved Hugging Face data set or tars."""
    val: Annotated[str, arg(metavar="PATH", help_behavior_hint="")] = ""
    """Held-back images, where they lie at another place."""
    page: Annotated[str, arg(metavar="FILE", help_behavior_hint="")] = ""
    """Write a page with pictures of what was found, such as check.html."""
    json: Flag = False
    """Print everything as one JSON document on standard output."""

    def run(self, rest: list[str]) -> None:
        from vitrail.data.audit.findings import check, text
        from vitrail.data.sources.open import Data, find_splits
        from vitrail.report.data_page import write

        if self.page and not Path(self.page).parent.is_dir():
            raise ValueError(f"the folder of --page {self.page} does not exist; make it first.")
        splits = find_splits(Data(self.data))
        if self.val:
            held_back = find_splits(Data(self.val))
            name = next(name for name in ("val", "test", "all", "train") if name in held_back)
            splits = {("train" if name == "all" else name): source for name, source in splits.items()}
            splits["val"] = held_back[name]
        report = check(splits)
        if self.page:
            write(report, Path(self.page), splits)
        print(jsonlib.dumps(report.document(), indent=2) if self.json else text(report))
        if report.faults:
            sys.exit(1)


def matched(source: "Source", names: tuple[str, ...], where: str) -> "Source":
    """The source under the class numbers that a model has for `names`.

    Classes that have no names are matched by position. ValueError where the model lacks a class of the data, has two of
    that name, or has none at all.
    """
    from vitrail.data.sources.source import Renumbered
    from vitrail.progress import say

    theirs, numbers = source.class_names, tuple(map(str, range(len(names))))
    if not names:
        raise ValueError("the model has no head, so there is nothing to evaluate; fine-tune it first.")
    if theirs == names:
        return source
    if unknown := [name for name in theirs if name not in names]:
        if len(theirs) == len(names) and numbers in (theirs, names):
            say(f"{'the model' if names == numbers else where} has classes without names: they are taken in order.")
            return source
        raise ValueError(f"{where}: the classes {_some(unknown)} are none of the model's, which are {_some(names)}.")
    if twice := [name for name in theirs if names.count(name) > 1]:
        raise ValueError(f"{where}: the model has several classes called {_some(twice)}; give the data other names.")
    if len(theirs) < len(names):
        say(f"{where} has {len(theirs)} of the model's {len(names)} classes.")
    return Renumbered(source, names)


def document(found: "Found", small: "Found | None" = None) -> dict[str, Any]:
    """What was measured, for JSON; a rate of nothing is null. small: the same in int8."""
    from vitrail.cli.results import interval
    from vitrail.evaluate.results import ClassificationResult, agreement

    metrics, result = found[0], found[1].get("classification")
    document = {"metrics": metrics, "samples": int(metrics["samples"]), "interval": interval(metrics)}
    if isinstance(result, ClassificationResult):
        rates = result.per_class()
        columns = {name: getattr(rates, name).tolist() for name in ("precision", "recall", "f1")}
        document["per_class"] = [
            {"label": name, "images": int(rates.support[place])}
            | {rate: None if math.isnan(values[place]) else values[place] for rate, values in columns.items()}
            for place, name in enumerate(result.class_names)
        ]
    if small is not None:
        document["int8"] = {"metrics": small[0], "interval": interval(small[0])}
        other = small[1].get("classification")
        if isinstance(result, ClassificationResult) and isinstance(other, ClassificationResult):
            document["int8"]["same"] = agreement(result, other)
    return document


def text(found: "Found", small: "Found | None" = None) -> str:
    """What was measured, for people, with the weakest classes. small: the same in int8."""
    from vitrail.cli.results import headline
    from vitrail.evaluate.results import ClassificationResult, agreement

    metrics, result = found[0], found[1].get("classification")
    first = headline(metrics)
    others = [f"{n} {v:.4g}" for n, v in metrics.items() if n not in ("samples", "unreadable", first.partition(" ")[0])]
    lines = ["; ".join([f"{first} on {metrics['samples']:,.0f} images", ", ".join(others)]).rstrip("; ")]
    if isinstance(result, ClassificationResult):
        rates = result.per_class()
        weakest = [place for place in rates.f1.argsort(kind="stable").tolist() if rates.support[place]][:WORST]
        named = [f"{result.class_names[place]} {rates.f1[place]:.2f}" for place in weakest]
        lines.append(f"the weakest classes, by F1: {', '.join(named)}")
    if small is not None:
        other, same = small[1].get("classification"), ""
        if isinstance(result, ClassificationResult) and isinstance(other, ClassificationResult):
            same = f"; {agreement(result, other):.2%} of the answers are the same"
        lines.append(f"in int8: {headline(small[0])}{same}")
    if unread := metrics.get("unreadable"):
        lines.append(f"images that could not be read and were left out: {unread:,.0f}")
    return "\n".join(lines)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

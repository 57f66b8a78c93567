"""`vitrail evaluate`: how good weights are on labelled images."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from vitrail.cli.opening import Using
from vitrail.cli.options import Command, Flag, Given, Model, described
from vitrail.config import kinds
from vitrail.progress import few, say

if TYPE_CHECKING:
    from vitrail.data.sources.open import Data, Needs
    from vitrail.data.sources.source import Source
    from vitrail.evaluate import Evaluator, Validation
    from vitrail.run import Run
    from vitrail.tasks import Task


@dataclass(kw_only=True)
class Evaluate(Using, Command):
    """Measure how good a model is on labelled images.

    Its classes and the data's are matched by name. The columns of a table are named as for vitrail train:
    --data.image-column NAME, --data.label-column NAME. Exit status: 0 done, 1 where some images could not be read
    (--skip-unreadable), 2 where nothing could be measured.
    """

    extends = True
    model: Model
    """A run folder such as runs/demo, a model folder, a file with weights, or hf-hub:OWNER/NAME."""
    data: Positional[Annotated[str, arg(metavar="[DATA]", help_behavior_hint="")]] = ""
    """Labelled images, of any kind that vitrail train reads. For a run, the default is its own validation images."""
    with_: Annotated[tuple[str, ...], arg(name="with", metavar="NAME...", help_behavior_hint="")] = ()
    """What judges instead of the model's own evaluators: accuracy, attentive, calibration, copies, fewshot, knn,
    labels, linear, robustness (docs/evaluate.md), or one of your own in a file that --code names."""
    split: Literal["val", "test", "train"] = "val"
    """Which of the data's images; val means test where there is no val, and all where there are no splits."""
    skip_unreadable: Flag = False
    """Leave out images that cannot be read, and count them."""
    int8: Flag = False
    """Also measure the model with the linear layers of its blocks in 8 bits, as vitrail predict --int8 does."""
    json: Flag = False
    """Print one JSON document: {metrics, samples, interval, per_class}, with trained_on, the fraction of the images
    that were trained on, where some were, and with --int8 {int8: {metrics, interval, same}}, where same is the fraction
    of answers that int8 does not change."""

    def run(self, given: Given) -> None:
        from vitrail.evaluate.evaluator import judge
        from vitrail.evaluate.summary import document, text
        from vitrail.runtime.inference import prepared
        from vitrail.tasks.exported import needs_weights

        if self.int8 and self.device not in ("auto", "cpu"):
            raise ValueError(f"int8 layers are computed on the CPU; leave out --device {self.device}.")
        run = self.made()
        task = self.pipeline(self.model, cpu=self.int8 or (run is not None and run.device == "cpu")).task
        if self.int8:
            needs_weights(task, "compute in 8 bits")
        evaluators = self.evaluators(run, task)
        left = list[str]()

        def skipped(problem: str) -> None:
            left.append(problem)
            say(problem)

        task, data, known = self.opened(run, task, given, evaluators, skipped)
        found, small = judge(evaluators, prepared(task), data), None
        if self.int8:
            # Each image is named once; int8's weights are not in what names kept features.
            quiet = replace(data, skipped=(lambda _: None) if data.skipped else None, keep=False)
            small = judge(evaluators, prepared(task, "int8"), quiet)
        result = document(found, small) | ({"trained_on": known} if known else {})
        warning = f"\n{known:.1%} of these images were trained on: on new images the model is worse" if known else ""
        self.answer(result, text(result) + warning)
        if left:
            sys.exit(1)

    def made(self) -> "Run | None":
        """The run that the model is of; None where it is none."""
        from vitrail import run as runs

        folder = Path(self.model)
        return runs.read(folder) if (folder / "run.json").is_file() else None

    def opened(
        self,
        run: "Run | None",
        task: "Task",
        given: Given,
        evaluators: "Sequence[Evaluator]",
        skipped: Callable[[str], None],
    ) -> "tuple[Task, Validation, float]":
        """(the task as these images are judged by it, the images, the fraction of them that it was trained on)."""
        from vitrail.data.stream import workers_for
        from vitrail.evaluate import Validation
        from vitrail.runtime.inference import batch_size
        from vitrail.tasks.exported import Exported

        source, train, known = self._sources(run, task, given, evaluators)
        task, device = task.for_targets(source.targets), task.device
        skip = self.skip_unreadable or (run is not None and not self.data and run.data.unreadable == "skip")
        say(f"evaluating {self.model} on {len(source):,} images, on {device}")
        data = Validation(
            source,
            task.preprocessing,
            partial(task.config.collate, source=source),
            batch_size(task.model.config, task.preprocessing.image_size, device),
            device,
            workers_for(device, run and run.workers),
            skipped if skip else None,
            train=train,
            keep=not isinstance(task, Exported),
        )
        return task, data, known

    def evaluators(self, run: "Run | None", task: "Task") -> "Sequence[Evaluator]":
        """Those that are named, or the run's, or the task's. ValueError for a name that is not known."""
        from vitrail.evaluate import Evaluator

        if run and not self.with_:
            return run.evaluators()
        known = kinds(Evaluator)
        if other := next((name for name in self.with_ if name not in known), None):
            own = "; one of your own needs --code FILE.py" * (not self.code)
            raise ValueError(f"there is no evaluator {other!r}, but {', '.join(sorted(known))}{own}.")
        return [known[name]() for name in self.with_ or task.config.evaluators]

    def _sources(
        self, run: "Run | None", task: "Task", given: Given, evaluators: "Sequence[Evaluator]"
    ) -> "tuple[Source, Source | None, float]":
        """(the images that are asked for, under the model's class numbers where its answers are judged; those to train
        on, if features are judged and there are some; the fraction of the first that the model was trained on)."""
        from vitrail import run as runs
        from vitrail.data.sources.open import find_splits, open_source, open_splits
        from vitrail.evaluate.matching import common, matched, seen

        if not self.data and not run:
            raise ValueError(f"{self.model} is not a run, which would have its own images; name DATA after it.")
        needs, folder = (run.task if run else task.config).needs, Path(self.model)  # pre-training needs no labels
        known, said = 0.0, ""
        features = any(not one.head for one in evaluators)
        train = None
        data = described(self.data or (run.data.path if run else ""), given, self, "vitrail evaluate", run and run.data)
        data = replace(data, balance=False)
        if run and (Path(data.path) == Path(run.data.path) or self._same(data, needs)):
            source = open_source(data, self.split, needs)
            train = open_source(data, "train", needs) if features and self.split != "train" else None
        else:
            there = find_splits(data)
            found: Mapping[str, Source] = there
            if features and [*found] == ["all"] and self.split == "val":  # most of it becomes what is trained on
                splits = open_splits(data, needs)
                found = {"train": splits.train, "val": splits.val}
            wanted = ("val", "test", "all") if self.split == "val" else (self.split,)
            if not (fitting := [found[name] for name in wanted if name in found]):
                raise ValueError(f"{self.data} has no {self.split} images (but {few(found)}), which --split asks for.")
            source, said = fitting[0], "\n".join(there.said(self.data))
            train = found.get("train") if features and self.split != "train" else None
            if run is None and folder.name == "model" and (folder.parent / "run.json").is_file():
                run = runs.read(folder.parent)
            if run:
                try:
                    known = seen(source, open_source(replace(run.data, balance=False), "train", needs))
                except ValueError:
                    said += f"\n{run.data.path} cannot be opened: which of these images were trained on is not known."
        if needs == "classes" and any(one.head for one in evaluators):
            names = self._names(task, source)
            source = matched(source, names, self.data or self.model)
            train = train and matched(train, names, self.data or self.model)
        elif train is not None:
            source = common(source, train.class_names, self.data or self.model)
        if said:
            say(said)
        return source, train, known

    def _names(self, task: "Task", source: "Source") -> tuple[str, ...]:
        """The model's class names as the data calls them: by their ids, where these are asked for and fit."""
        from vitrail.weights.adjust import class_file

        if self.classes and self.classes != "numbers":
            ids, _ = class_file(Path(self.classes), len(task.class_names))
            return ids if set(source.class_names) <= set(ids) else task.class_names
        return task.class_names

    def _same(self, data: "Data", needs: "Needs") -> bool:
        """Whether data at another path is what the run was made with, by its files, their labels and contents."""
        from vitrail import run as runs
        from vitrail.cli.launch import fingerprints
        from vitrail.data.sources.open import open_splits

        folder = Path(self.model)
        try:
            changed, _ = runs.changes(folder, fingerprints(open_splits(data, needs)))
        except ValueError:  # it cannot be divided as the run's data was
            return False
        if same := not changed and bool(runs.changes(folder, {})[0]):
            say(f"{self.data} is the data of {self.model}: its own {self.split} images are evaluated.")
        return same

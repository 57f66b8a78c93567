"""`vitrail pretrain`: features from images without labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from vitrail.cli.options import Command, DataPlace, Given, Out, override


@dataclass(kw_only=True)
class Pretrain(Command):
    """Learn features from images without labels, from scratch or on from weights.

    What comes out is a model without a head: judge it by vitrail evaluate RUN DATA --with knn fewshot linear, make a
    classifier of it from a handful of images by vitrail fewshot, or fine-tune it. Any field of the run can be set, as
    in vitrail train: --duration "20 epochs" --batch 256 --task.regulariser 0.02.
    """

    extends = True
    data: DataPlace
    task: Literal["auto", "views", "mae", "patches", "distill"] = "auto"
    """views: crops of an image are to have one embedding (LeJEPA). mae: hidden patches are painted (He et al.).
    patches: their colours are predicted (the paper's appendix B.1.2). auto: by the images, which is said."""
    start: Annotated[str, arg(metavar="W", help_behavior_hint="")] = ""
    """Weights to go on from: a file or folder, a run folder, or hf-hub:OWNER/NAME. Without it: from scratch."""
    teacher: Annotated[str, arg(metavar="W", help_behavior_hint="")] = ""
    """Weights whose features a new, smaller model is to have: the task distill."""
    augment: Literal["photo", "grey", "micro", "none"] = "photo"
    """What views may change of an image without changing what it shows. photo: colours, blur, mirrored. grey:
    brightness and contrast. micro: for cells, which have no up: turned, too. none: crops alone. Other tasks crop and
    mirror, or, with none, do neither."""
    out: Out = ""
    """The run folder. Without it runs/pretrain_TASK, or the first free one of -2, -3, ..."""

    def run(self, given: Given) -> None:
        from vitrail.cli.launch import begin
        from vitrail.data.sources.open import Data, open_splits
        from vitrail.progress import say
        from vitrail.recipes.fast import look_through
        from vitrail.recipes.unlabelled import unlabelled, why

        reading = {name: said for name, said in given.items() if name.startswith("data.")}
        data = override(Data(self.data), reading, self, "data.")
        splits = open_splits(data, "none")
        made = unlabelled(self.data, self.task, self.augment, self.start or None, data, self.teacher, splits.train)
        if words := why(look_through(splits.train), self.task, self.start or None, self.teacher):
            say(words)
        run = override(made, given, self)
        outcome = begin(run, Path(self.out) if self.out else None, splits, adapt=True)
        self.answer(outcome.document(), outcome.text())

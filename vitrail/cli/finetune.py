"""`vitrail finetune`: from weights to a model of the user's own images.

With several rates there is a run for each in OUT.choice (rate_search.py), then one with the best of them in OUT.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from vitrail.cli.options import Command, DataPlace, Given, Out, override


@dataclass(kw_only=True)
class Finetune(Command):
    """Fine-tune weights on your own images.

    Any field of the run can be set, as in vitrail train: --duration "5 epochs" --optim.lr 3e-4 --image-size 384.
    Several --rates are each tried on a part of the training images, and the best one is taken; after an interruption
    the same command continues.
    """

    extends = True
    data: DataPlace
    weights: Annotated[str, arg(metavar="W")]
    """What to start from: a file or folder with weights, a run folder, or hf-hub:OWNER/NAME."""
    out: Out = ""
    """The run folder. Without it runs/finetune or runs/finetune_small, or the first free one of -2, -3, ..."""
    recipe: Literal["auto", "paper", "small"] = "auto"
    """paper: SGD at 384 pixels, for a GPU. small: AdamW at the weights' own size. auto: by machine and data."""
    rates: Annotated[tuple[float | Literal["paper"], ...], arg(metavar="R...", help_behavior_hint="")] = ()
    """Learning rates to choose from, or "paper" for the paper's. Without it: the recipe's own."""

    def run(self, given: Given) -> None:
        import torch

        from vitrail.cli.launch import AGAIN, Outcome, begin, settle
        from vitrail.cli.rate_search import best, choose, table, usable
        from vitrail.data.sources.open import Data, open_splits
        from vitrail.recipes.finetune import FEW, at, choices, finetune, finetune_small
        from vitrail.runtime.blocks import pick_device
        from vitrail.runtime.folders import numbered, vacant

        rates = [rate for rate in dict.fromkeys(self.rates) if rate != "paper"]
        if rates and "paper" in self.rates:
            raise ValueError("--rates are numbers, or the word paper alone.")
        # The data is opened first: the recipe depends on how many images there are.
        reading = {name: said for name, said in given.items() if name.startswith("data.")}
        splits = open_splits(override(Data(self.data), reading, self, "data."))
        count, device = len(splits.train), torch.device(pick_device(" ".join(given.get("device", ["auto"]))))
        small = self.recipe == "small" or (self.recipe == "auto" and (device.type == "cpu" or count < FEW))
        made = finetune_small(self.data, self.weights, count) if small else finetune(self.data, self.weights, count)
        run = override(made, given, self)
        run = run if "model.classes" in given else run.task.adapt(run, splits.train)
        if len(rates) == 1:
            run = at(run, rates[0])
        trials = choices(run, count, rates) if self.rates and len(rates) != 1 else []
        folder, tried = Path(self.out) if self.out else None, dict[float, Outcome | None]()
        if trials:
            folder = folder or next(place for place in numbered(run.recipe) if usable(place, run, trials))
            if not usable(folder, run, trials):
                vacant(folder)
                raise ValueError(f"{folder}.choice holds other runs; name another folder with --out.")
            tried = choose(trials, folder)
        if tried:
            run = at(run, best(tried, run))
        if tried and not self.json:
            print(table(tried, run.optim.lr))
        outcome = settle(run, folder, AGAIN, splits) if folder and tried else begin(run, folder, splits)
        found = [{"lr": lr, "outcome": one and one.document()} for lr, one in tried.items()]
        self.answer({**outcome.document(), "choices": found}, outcome.text())

"""`vitrail finetune`: from weights to a model of the user's own images.

With several rates there is a run for each in OUT.choice (rate_search.py), then one with the best of them in OUT.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from vitrail.cli.options import Command, DataPlace, Given, Out, consent, folder_for, override

if TYPE_CHECKING:
    from vitrail.data.sources.open import Splits
    from vitrail.run import Run


@dataclass(kw_only=True)
class Finetune(Command):
    """Fine-tune weights on your own images.

    Any field of the run can be set, as in vitrail train: --duration "5 epochs" --optim.lr 3e-4 --image-size 384.
    Several --rates are each tried on a part of the training images, and the best one is taken; after an interruption
    the same command continues.
    """

    needs = "DATA and --weights W"
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
        from vitrail import run as runs
        from vitrail.cli.launch import begin, settle
        from vitrail.cli.rate_search import AGAIN, best, choose, table, usable
        from vitrail.recipes.finetune import at, choices

        rates = [rate for rate in dict.fromkeys(self.rates) if rate != "paper"]
        if rates and "paper" in self.rates:
            raise ValueError("--rates are numbers, or the word paper alone.")
        run, splits = self._run(given)
        run = at(run, rates[0]) if rates else run
        trials = choices(run, len(splits.train), rates) if self.rates else []
        if len(trials) < 2:
            folder = folder_for(run.recipe, self.out)
            outcome, tried = begin(run, folder, splits), {}
        else:
            folder = folder_for(run.recipe, self.out, lambda path: usable(path, run, trials))
            if not usable(folder, run, trials):
                runs.vacant(folder)
                raise ValueError(f"{folder}.choice holds other runs; name another folder with --out.")
            tried = choose(trials, folder)
            if not self.json:
                print(table(tried, run))
            outcome = settle(at(run, best(tried, run)), folder, AGAIN)
        found = [{"lr": lr, "outcome": one and one.document()} for lr, one in tried.items()]
        self.answer({**outcome.document(), "choices": found}, outcome.text())

    def _run(self, given: Given) -> tuple["Run", "Splits"]:
        """The run that is asked for, at one rate, and its data."""
        import torch

        from vitrail.data.sources.open import Data, open_splits
        from vitrail.recipes.finetune import finetune, finetune_small, recipe_for
        from vitrail.runtime.blocks import pick_device

        # The data is opened first: the recipe depends on how many images there are.
        reading = {name: said for name, said in given.items() if name.startswith("data.")}
        data = override(Data(self.data), reading, self, "data.")
        consent(data.path, data.val)
        splits = open_splits(data)
        count = len(splits.train)
        device = torch.device(pick_device(" ".join(given.get("device", ["auto"])))).type
        recipe = {"paper": finetune, "small": finetune_small}.get(self.recipe) or recipe_for(count, device)
        images = {"images": count} if recipe is finetune else {}
        run = override(recipe(self.data, self.weights, **images), given, self)
        return run if "model.classes" in given else run.task.adapt(run, splits.train), splits

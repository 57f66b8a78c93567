"""`vitrail finetune`: from weights to a model of the user's own images.

    vitrail finetune photos --weights hf-hub:timm/vit_small_patch16_224.augreg_in21k
    vitrail finetune photos --weights ViT-B_16.npz --rates paper

With several rates there is a run for each in OUT.choice (choosing.py), then one with the best of them in OUT.
"""

import json as jsonlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from vitrail.cli.options import Flag, out_folder
from vitrail.cli.words import options

if TYPE_CHECKING:
    from vitrail.data.sources.open import Splits
    from vitrail.run import Run


@dataclass
class Finetune:
    """Fine-tune weights on your own images.

    Any field of the run may be overridden, as in vitrail train: --duration "5 epochs" --optim.lr 3e-4 --image-size 384.
    Several --rates are each tried on a part of the training images, and the best one is taken; after an interruption
    the same command goes on where it was.
    """

    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """The images: class folders, MNIST's or CIFAR's files, a table, a saved Hugging Face data set or tars."""
    weights: Annotated[str, arg(metavar="W")]
    """What to start from: a file or folder with weights, a run folder, or hf-hub:OWNER/NAME."""
    out: Annotated[str, arg(metavar="FOLDER", help_behavior_hint="")] = ""
    """The run folder. Without it runs/finetune or runs/finetune_small, or the first that is free of -2, -3, ..."""
    recipe: Literal["auto", "paper", "small"] = "auto"
    """paper: SGD at 384 pixels, for a GPU. small: AdamW at the weights' own size. auto: what suits machine and data."""
    rates: Annotated[tuple[str, ...], arg(metavar="R...", help_behavior_hint="")] = ()
    """Learning rates to choose from, or "paper" for the paper's. Without it: the recipe's own."""
    json: Flag = False
    """Print the result as one JSON document on standard output."""

    def run(self, rest: list[str]) -> None:
        from vitrail import run as runs
        from vitrail.cli.launch import begin, settle
        from vitrail.cli.rate_search import AGAIN, at, best, choose, table, usable
        from vitrail.recipes.finetune import choices

        rates = numbers(self.rates)
        run, splits = self._run(options(rest, "finetune takes one place with images"))
        run = at(run, rates[0]) if rates else run
        trials = choices(run, len(splits.train), rates) if self.rates else []
        if len(trials) < 2:
            folder = Path(self.out) if self.out else out_folder(run.recipe, lambda path: not path.exists())
            runs.vacant(folder)
            outcome, tried = begin(run, folder, splits), {}
        else:
            folder = Path(self.out) if self.out else out_folder(run.recipe, lambda path: usable(path, run, trials))
            if not usable(folder, run, trials):
                runs.vacant(folder)
                raise ValueError(f"{folder}.choice holds other runs; name another folder with --out.")
            tried = choose(trials, folder)
            if not self.json:
                print(table(tried, run))
            outcome = settle(at(run, best(tried, run)), folder, AGAIN)
        found = [{"lr": lr, "outcome": one and one.document()} for lr, one in tried.items()]
        print(jsonlib.dumps({**outcome.document(), "choices": found}, indent=2) if self.json else outcome.text())

    def _run(self, words: dict[str, list[str]]) -> tuple["Run", "Splits"]:
        """The run that is asked for, at one rate, and its data."""
        import torch

        from vitrail.cli.overrides import override
        from vitrail.data.sources.open import Data, open_splits
        from vitrail.recipes.finetune import finetune, finetune_small, recipe_for
        from vitrail.runtime.blocks import pick_device

        own = [field.name for field in fields(self)]
        # How the data is read comes first: the recipe depends on how many images there are.
        reading = {name: said for name, said in words.items() if name.startswith("data.")}
        splits = open_splits(override(Data(self.data), reading, own, "data."))
        count = len(splits.train)
        device = torch.device(pick_device(" ".join(words.get("device", ["auto"])))).type
        recipe = {"paper": finetune, "small": finetune_small}.get(self.recipe) or recipe_for(count, device)
        images = {"images": count} if recipe is finetune else {}
        run = override(recipe(self.data, self.weights, **images), words, own)
        return run if "model.classes" in words else run.task.adapt(run, splits.train), splits


def numbers(rates: Sequence[str]) -> list[float]:
    """["0.01", "0.03"] -> [0.01, 0.03]; nothing for ["paper"]. ValueError for other words, and rates that are none."""
    if list(rates) == ["paper"]:
        return []
    found = []
    for word in rates:
        try:
            rate = float(word)
        except ValueError:
            rate = math.nan
        if not 0 < rate < math.inf:
            raise ValueError(f"--rates has {word!r}; give numbers above 0, or the word paper alone.")
        found.append(rate)
    return list(dict.fromkeys(found))

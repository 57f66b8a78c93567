"""The commands that train from scratch, and the one that goes on: demo, train, resume.

Their `run` imports what it needs, for `--help` must not wait for torch.
"""

import ast
import json as jsonlib
import textwrap
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from vitrail.cli.options import Flag, Folder, out_folder, paragraphs
from vitrail.cli.words import options

if TYPE_CHECKING:
    from vitrail.data.sources.source import Source
    from vitrail.run import Run

RECIPES_FOLDER = Path(__file__).parent.parent / "recipes"


@dataclass
class Demo:
    """Train a small ViT on the images in the package: about three minutes on two cores."""

    out: Folder = "runs/demo"
    """The run folder; it must not exist yet."""
    data: Folder = "fashion"
    """"fashion" for the images in the package, or a folder or file of images of your own."""
    duration: Annotated[str, arg(metavar="TIME")] = "10 epochs"
    """How long to train: "3 epochs" or "500 steps", with the quotes."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Decides the initial values, the order of the images and their augmentation."""
    json: Flag = False
    """Print the result as one JSON document on standard output."""

    def run(self, rest: list[str]) -> None:
        from vitrail import run as runs
        from vitrail.cli.launch import begin
        from vitrail.data.sources.open import open_splits
        from vitrail.recipes.demo import demo

        folder = Path(self.out)
        runs.vacant(folder)
        run = demo(self.data, self.duration, self.seed)
        splits = open_splits(run.data)
        outcome = begin(run.task.adapt(run, splits.train), folder, splits)
        examples = _examples(splits.val, folder)
        if self.json:
            print(jsonlib.dumps({**outcome.document(), "predictions": examples}, indent=2))
            return
        for example in examples:
            truth, label = example["truth"], example["label"]
            mark = "right" if label == truth else "wrong"
            print(f"  {example['file']}: {label} ({example['probability']:.0%}), is {truth}: {mark}")
        print(outcome.text())


@dataclass
class Train:
    """Train a model by a recipe, or by the one for whatever small images there are.

    Any field of the recipe may be overridden: --batch 128 --optim.lr 3e-4 --duration "3 epochs" --image-size 160.
    vitrail train RECIPE --help shows a recipe, and all that may be overridden.
    """

    data: Annotated[str, arg(metavar="PATH")]
    """The images: class folders, MNIST's or CIFAR's files, a table, a saved Hugging Face data set or tars."""
    recipe: Positional[Annotated[tuple[str, ...], arg(metavar="[RECIPE]", help_behavior_hint="")]] = ()
    """One of those above. Without it fast: whatever small images there are, from scratch, in a few minutes."""
    out: Annotated[str, arg(metavar="FOLDER", help_behavior_hint="")] = ""
    """The run folder, which must not exist yet. Without it runs/RECIPE, or the first that is free of -2, -3, ..."""
    json: Flag = False
    """Print the result as one JSON document on standard output."""

    def run(self, rest: list[str]) -> None:
        from vitrail import run as runs
        from vitrail.cli.launch import begin
        from vitrail.cli.overrides import override
        from vitrail.data.sources.open import open_splits

        name, *others = self.recipe or ("fast",)
        words = options([*others, *rest], "train takes one recipe")
        run = override(recipe(name, self.data), words, [field.name for field in fields(self)])
        folder = Path(self.out) if self.out else out_folder(name, lambda path: not path.exists())
        runs.vacant(folder)
        splits = open_splits(run.data, run.task.needs)
        outcome = begin(run if "model.classes" in words else run.task.adapt(run, splits.train), folder, splits)
        print(jsonlib.dumps(outcome.document(), indent=2) if self.json else outcome.text())


@dataclass
class Resume:
    """Go on with a run that was stopped or killed, exactly as if it had not been."""

    folder: Positional[Folder]
    """The run folder, such as runs/demo."""
    anyway: Flag = False
    """Go on though the data is not what it was."""
    json: Flag = False
    """Print the result as one JSON document on standard output."""

    def run(self, rest: list[str]) -> None:
        from vitrail.cli.launch import go_on

        outcome = go_on(Path(self.folder), self.anyway)
        print(jsonlib.dumps(outcome.document(), indent=2) if self.json else outcome.text())


def recipe(name: str, data: str) -> "Run":
    """A recipe's Run. ValueError for a name that is none, and for a recipe that starts from weights."""
    from vitrail.recipes import RECIPES

    known = recipes()
    if name in RECIPES and name not in known:
        raise ValueError(f"{name} starts from weights: vitrail finetune {data} --weights WEIGHTS")
    if name not in known:
        from vitrail.cli.overrides import nearest

        near = nearest(name, list(known))
        hint = f"did you mean {near}?" if near else "vitrail train --help lists them."
        raise ValueError(f"there is no recipe {name!r}; {hint}")
    return RECIPES[name](data=data)


def recipes() -> dict[str, str]:
    """The docstrings of the recipes that need nothing but data, by name; read from the files, for importing them would
    import torch."""
    found = {}
    for path in sorted(RECIPES_FOLDER.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns) == "Run":
                needed = node.args.args[: len(node.args.args) - len(node.args.defaults)]
                if not node.name.startswith("_") and [a.arg for a in needed] in ([], ["data"]):
                    found[node.name] = ast.get_docstring(node) or ""
    return found


def listing(width: int) -> str:
    """The recipes and the first line of each docstring, in lines of at most `width` columns."""
    known = recipes()
    wide = max(map(len, known)) + 4
    lines = [
        textwrap.fill(text.splitlines()[0], width, initial_indent=f"  {name}".ljust(wide), subsequent_indent=" " * wide)
        for name, text in known.items()
    ]
    return "\n".join(("recipes:", *lines))


def page(name: str, width: int) -> str:
    """All that is to be said of a recipe: its docstring, and the options that override it."""
    from vitrail.cli.overrides import table

    about = (
        f"usage: vitrail train {name} --data PATH [--out FOLDER] [--json] [--OPTION VALUE ...]\n\n{recipes()[name]}\n\n"
        "Options, with what they take and what the recipe has for them. --image-size H [W] is both sizes at once."
    )
    return f"{paragraphs(about, width)}\n\n{table(recipe(name, 'PATH'), width)}"


def _examples(source: "Source", folder: Path, count: int = 5) -> list[dict[str, Any]]:
    """The saved model's answers on the first held-back images: what was trained is what predicts."""
    from vitrail.data.sources.source import classes_of
    from vitrail.pipeline import Pipeline

    pipeline, found = Pipeline.load(folder), []
    for index in range(min(count, len(source))):
        image, target, name, _ = source[index]
        [best] = pipeline(image, top=1)
        truth = ", ".join(source.class_names[number] for number in classes_of(target))
        found.append({"file": name, "truth": truth, "label": best.label, "probability": best.probability})
    return found

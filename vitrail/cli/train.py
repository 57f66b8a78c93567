"""The commands that train from scratch, and the one that resumes: demo, train, resume."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from vitrail.cli import options
from vitrail.cli.options import Command, Flag, Given, Out
from vitrail.cli.reading import names, option
from vitrail.config import attribute, dump

if TYPE_CHECKING:
    from vitrail.run import Run


@dataclass(kw_only=True)
class Demo(Command):
    """Train a small ViT on the images in the package: about three minutes on two cores."""

    out: Annotated[str, arg(metavar="FOLDER")] = "runs/demo"
    """The run folder; it must not exist yet."""
    data: Annotated[str, arg(metavar="FOLDER")] = "fashion"
    """"fashion" for the images in the package, or a folder or file with your own images."""
    duration: Annotated[str, arg(metavar="TIME")] = "10 epochs"
    """How long to train: "3 epochs" or "500 steps", with the quotes."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Decides the initial values, the order of the images and their augmentation."""

    def run(self, given: Given) -> None:
        from vitrail.cli.launch import begin
        from vitrail.data.sources.open import open_splits
        from vitrail.data.sources.source import classes_of
        from vitrail.pipeline import Pipeline
        from vitrail.recipes.demo import demo

        run = demo(self.data, self.duration, self.seed)
        splits = open_splits(run.data)
        outcome = begin(run, Path(self.out), splits, adapt=True)
        # The saved model's answers on the first validation images: what was trained is what predicts.
        some = [splits.val[index] for index in range(min(5, len(splits.val)))]
        truths = [", ".join(splits.val.class_names[number] for number in classes_of(one.target)) for one in some]
        answers = Pipeline.load(outcome.folder)([one.image for one in some], top=1)
        found = [{"file": o.name, "truth": t, **dump(best)} for o, t, [best] in zip(some, truths, answers, strict=True)]
        shown = "  {file}: {label} ({probability:.0%}), is {truth}: {right}"
        lines = [shown.format(**one, right="right" if one["label"] == one["truth"] else "wrong") for one in found]
        self.answer({**outcome.document(), "predictions": found}, "\n".join([*lines, outcome.text()]))


@dataclass(kw_only=True)
class Train(Command):
    """Train a model by a recipe; without a name by `fast`, which suits any small images.

    Any field of the recipe can be set: --batch 128 --optim.lr 3e-4 --duration "3 epochs" --image-size 160. A recipe and
    all of its options: vitrail train RECIPE --help.
    """

    extends = True
    recipe: Positional[Annotated[str, arg(metavar="[RECIPE]", help_behavior_hint="")]] = ""
    """One of those above, or FILE.py:NAME, a function of yours that returns a Run. Without it: fast, from scratch in
    minutes for small images; how long a run takes is said when it starts."""
    data: Annotated[str, arg(metavar="PATH", help_behavior_hint="(required, unless RECIPE is your own)")] = ""
    """The images: class folders, MNIST's or CIFAR's files, a table, a saved Hugging Face data set, tars; or a function
    of yours that returns a Source, FILE.py:NAME."""
    out: Out = ""
    """The run folder, which must not exist yet. Without it runs/RECIPE, or the first free one of -2, -3, ..."""

    def run(self, given: Given) -> None:
        from vitrail.cli.launch import begin

        reading = {name: said for name, said in given.items() if name.startswith("data.")} if self.data else {}
        run = options.override(recipe(self.recipe or "fast", self.data, reading), given, self)
        outcome = begin(run, Path(self.out) if self.out else None, adapt="model.classes" not in given)
        self.answer(outcome.document(), outcome.text())

    @classmethod
    def help(cls, prog: str, words: Sequence[str]) -> None:
        from vitrail import recipes

        command, _ = options.parse(cls, prog, [word for word in words if word not in ("-h", "--help")])
        if name := command.recipe:
            run = recipe(name, command.data or "PATH")
            about = recipes.listed().get(name) or inspect.getdoc(attribute(name)) or ""
            more = "--image-size H [W] is the size of model and preprocessing; {True,False} may be left out for True."
            options.show(run, f"{prog} {name} --data PATH", f"{about}\n\n{more}")
        options.show(cls, prog, f"{inspect.getdoc(cls)}\n\nrecipes:\n\n{options.columns(recipes.listed())}")


# What may change while a run goes on: it decides no weights, but for the duration.
CHANGES = """data.path, data.val, data.unreadable, duration, device, workers, shard, micro_batch, compile,
    checkpointing, keep, log_every, evaluate_every, checkpoint_every, tensorboard"""


@dataclass(kw_only=True)
class Resume(Command):
    """Continue a run that was stopped or killed, exactly as if it had not been.

    Some of its fields may change: --data.path where the data was moved (the same images, or it is refused), --data.val,
    --data.unreadable skip, --device, --workers, --shard, --micro-batch (unless the run is --exact), --compile,
    --checkpointing, --keep, --log-every, --evaluate-every, --checkpoint-every, --tensorboard; and --duration "20
    epochs", also of a run that has ended. The learning rate then goes from where it is to that of a run which had this
    duration from its start, over a tenth of the steps that are left; warm-up is not repeated.
    """

    extends = True
    folder: Positional[Annotated[str, arg(metavar="FOLDER")]]
    """The run folder, such as runs/demo."""
    anyway: Flag = False
    """Continue although the data has changed."""

    def run(self, given: Given) -> None:
        from vitrail.cli.launch import go_on

        def change(run: "Run") -> "Run":
            may = [name.strip() for name in CHANGES.split(",") if not (run.exact and "micro_batch" in name)]
            for name in given:
                if name not in may and name in (*names(run), *options.TOGETHER):
                    free = ", ".join(map(option, may))
                    raise ValueError(f"{option(name)} is fixed once a run has begun; what may change is {free}.")
            others = {name: words for name, words in given.items() if name != "data.path"}
            path = " ".join(given.get("data.path", [run.data.path]))
            if not path:
                raise ValueError("--data.path needs a value.")
            return options.override(replace(run, data=replace(run.data, path=path)), others, self)

        outcome = go_on(Path(self.folder), self.anyway, change=change)
        self.answer(outcome.document(), outcome.text())


def recipe(name: str, data: str, reading: Given | None = None, instead: str = "") -> "Run":
    """The Run of a recipe in the package, or of FILE.py:NAME, whose file is run; `recipe` is that name. reading: the
    data's options, for a recipe that looks at it. instead: for data that is needed but not given. ValueError for an
    unknown name, a recipe that starts from weights, missing data, and what does not give a Run."""
    from vitrail import recipes
    from vitrail.data.sources.open import Data
    from vitrail.run import Run

    known = recipes.listed()
    if ".py:" not in name and name not in known:
        if name in recipes.RECIPES:
            raise ValueError(f"{name} starts from weights: vitrail finetune {data or 'DATA'} --weights WEIGHTS")
        near = options.nearest(name, list(known))
        hint = f"did you mean {near}?" if near else "vitrail train --help lists them."
        raise ValueError(f"there is no recipe {name!r}; {hint}")
    found = recipes.RECIPES[name] if name in known else attribute(name)
    if callable(found):
        takes = inspect.signature(found).parameters.get("data")
        if takes and takes.default is takes.empty and not (data := data or instead):
            raise ValueError("vitrail train needs --data PATH; see vitrail train --help.")
        how: dict[str, Any] = {"data": data} if takes and data else {}
        if reading and "reading" in inspect.signature(found).parameters:
            how["reading"] = options.override(Data(data), reading, prefix="data.")
        found = found(**how)
    if not isinstance(found, Run):
        raise ValueError(f"{name} gives {type(found).__name__}; a recipe is a function that returns a Run.")
    return replace(found, recipe=name, data=replace(found.data, path=data or found.data.path))

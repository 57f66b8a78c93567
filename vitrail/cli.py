"""The command line. Each command is a dataclass: its fields are the options, its docstring the help, `run` the work.

    vitrail demo                      train on the images in the package
    vitrail info ViT-B/16 --json      what a model is and costs

Nothing here imports torch before a command runs, so that --help answers at once. Exit status: 0 done, 2 bad input (one
sentence on standard error), 130 interrupted.
"""

import contextlib
import difflib
import io
import json as jsonlib
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional, arg

from vitrail import __version__

if TYPE_CHECKING:
    from vitrail.data.source import Source
    from vitrail.train import Trainer

Flag = Annotated[bool, arg(help_behavior_hint="")]  # without "(default: False)"
Folder = Annotated[str, arg(metavar="FOLDER")]


@dataclass
class Demo:
    """Train a small ViT on the images in the package: about three minutes on two cores."""

    out: Folder = "runs/demo"
    """The run folder; it must not exist yet."""
    data: Folder = "fashion"
    """"fashion" for the images in the package, or a folder with MNIST's four idx files."""
    duration: Annotated[str, arg(metavar="TIME")] = "10 epochs"
    """How long to train: "3 epochs" or "500 steps", with the quotes."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Decides the initial values, the order of the images and their augmentation."""
    json: Flag = False
    """Print the result as one JSON document on standard output."""

    def run(self, rest: list[str]) -> None:
        from vitrail import run as runs
        from vitrail.recipes.demo import demo
        from vitrail.train import Trainer

        folder = Path(self.out)
        runs.vacant(folder)
        # Whatever is wrong with the data or the options is said before there is a run folder.
        trainer = Trainer(demo(self.data, self.duration, self.seed), folder)
        runs.write(trainer.run, folder)
        _train(trainer, self.json)


@dataclass
class Resume:
    """Go on with a run that was stopped or killed, exactly as if it had not been."""

    folder: Positional[Folder]
    """The run folder, such as runs/demo."""
    json: Flag = False
    """Print the result as one JSON document on standard output."""

    def run(self, rest: list[str]) -> None:
        from vitrail import run as runs
        from vitrail.train import Trainer

        folder = Path(self.folder)
        _train(Trainer(runs.read(folder), folder), self.json)


@dataclass
class Info:
    """Show a model's configuration, parameters, tokens and FLOPs.

    Any field of the configuration may be overridden, after the name: vitrail info ViT-B/16 --classes 10 --patch-size 8.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A name from docs/zoo.md, such as ViT-B/16, R50+ViT-B/16 or vit_base_patch16_224; or a model or run folder."""
    image_size: Annotated[tuple[int, ...] | None, arg(metavar="H [W]", help_behavior_hint="")] = None
    """Height and width in pixels of the images that it will see; one number for squares. Without it: the model's."""
    json: Flag = False
    """Print one JSON document on standard output."""

    def run(self, rest: list[str]) -> None:
        from vitrail.info import describe, text

        if self.image_size is not None and len(self.image_size) not in (1, 2):
            raise ValueError(f"--image-size takes height and width, not {len(self.image_size)} numbers.")
        size = (self.image_size[0], self.image_size[-1]) if self.image_size else None
        card = describe(self.model, _overrides(rest), size)
        print(jsonlib.dumps(card, indent=2) if self.json else text(card))


COMMANDS: dict[str, type[Demo] | type[Resume] | type[Info]] = {"demo": Demo, "info": Info, "resume": Resume}
OVERRIDABLE = (Info,)


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Exits with the status that the first lines of this file name."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command, rest = _parse(arguments)
        command.run(rest)
    except (ValueError, OSError) as error:
        print(f"vitrail: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("vitrail: interrupted", file=sys.stderr)
        sys.exit(130)


def _parse(arguments: list[str]) -> tuple[Demo | Resume | Info, list[str]]:
    """The command, and the options that are none of its own. ValueError, one sentence, for what cannot be read."""
    name = arguments[0] if arguments else ""
    if name not in COMMANDS:
        if name in ("-h", "--help"):
            _help()
        if name == "--version":
            print(__version__)
            sys.exit(0)
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}."
        raise ValueError(
            f"there is no command {name!r}; {hint}" if name else "name a command; vitrail --help lists them."
        )
    kind, said = COMMANDS[name], io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command, rest = tyro.cli(
                kind,
                prog=f"vitrail {name}",
                args=arguments[1:],
                return_unknown_args=True,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
            )
    except SystemExit as stop:
        if stop.code:
            raise ValueError(_sentence(name, said.getvalue())) from None
        raise
    if rest and kind not in OVERRIDABLE:
        known = [f"--{field.replace('_', '-')}" for field in kind.__dataclass_fields__]
        near = difflib.get_close_matches(rest[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"see vitrail {name} --help."
        what = "option" if rest[0].startswith("-") else "place for"
        raise ValueError(f"vitrail {name} has no {what} {rest[0]}; {hint}")
    return command, rest


def _help() -> None:
    """Prints what there is and exits with 0; tyro lays it out."""
    tyro.extras.subcommand_cli_from_dict(
        dict(COMMANDS),
        prog="vitrail",
        description="The Vision Transformer, from a folder of images to a model.\n\n"
        "vitrail COMMAND --help shows a command's options.",
        args=["--help"],
    )


def _sentence(name: str, box: str) -> str:
    """tyro's framed complaint as one sentence; a complaint that is not known here keeps its words."""
    # The frame is of box characters, or of hyphens where the terminal has none.
    text = " ".join(re.sub("[│╭╮╰╯]|[─-]{3,}", " ", box).split())
    text = text.partition(" Argument helptext:")[0].partition(" For full helptext")[0]
    if found := re.search(r"Missing value for argument '(--\S+)'", text):
        return f"{found[1]} needs a value; see vitrail {name} --help."
    if found := re.search(r"Missing (?:from .*?: ([A-Z]+)|value for argument '(\w+)')", text):
        return f"vitrail {name} needs a {(found[1] or found[2]).lower()}; name it before the options."
    if found := re.search(r"Error parsing (\S+): .*?('[^\]]*')", text):
        return f"{found[1]} cannot be {found[2].replace(',', '')}; see vitrail {name} --help."
    return text


def _overrides(rest: list[str]) -> dict[str, Any]:
    """["--patch-size", "8", "16", "--pool", "avg"] -> {"patch_size": (8, 16), "pool": "avg"}.

    ValueError for words that belong to no option, and an option without a value.
    """
    found: dict[str, Any] = {}
    name = ""
    for word in rest:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").replace("-", "_").partition("=")
            found[name] = [value] if value else []
        elif name:
            found[name].append(word)
        else:
            raise ValueError(f"{word!r} belongs to no option; vitrail info takes one model.")
    for name, words in found.items():
        if not words:
            near = difflib.get_close_matches(name, ("json", "help", "image_size"), n=1)
            hint = f"; did you mean --{near[0].replace('_', '-')}?" if near else "."
            raise ValueError(f"--{name.replace('_', '-')} needs a value{hint}")
        values = [_value(word) for word in words]
        found[name] = values[0] if len(values) == 1 else tuple(values)
    return found


def _value(word: str) -> Any:
    """A number, true, false or null where it reads as one; otherwise the word."""
    try:
        return jsonlib.loads({"True": "true", "False": "false", "None": "null"}.get(word, word))
    except jsonlib.JSONDecodeError:
        return word


def _train(trainer: "Trainer", json: bool) -> None:
    """Trains to the end, and says what came of it."""
    from vitrail.log import say
    from vitrail.train import Interrupted

    started = time.perf_counter()
    run, folder = trainer.run, trainer.folder
    size = sum(p.numel() for p in trainer.task.parameters())
    say(
        f"{run.recipe}: {size:,} parameters, {len(trainer.train_source):,} images, {run.duration} = "
        f"{trainer.total} steps of {run.batch}, on {trainer.device}, into {folder}"
        + (f"; going on after step {trainer.done}" if trainer.done else "")
    )
    try:
        metrics = trainer.fit()
    except Interrupted as stop:
        say(f"{stop}; go on with: vitrail resume {folder}")
        sys.exit(130)
    examples = _examples(trainer.test_source, folder)
    seconds = time.perf_counter() - started
    if json:
        result = {"run": str(folder), "seconds": round(seconds, 1), "metrics": metrics, "predictions": examples}
        print(jsonlib.dumps(result, indent=2))
        return
    print(f"accuracy {metrics['accuracy']:.1%} on {metrics['samples']:.0f} held-back images, after {seconds:.0f} s")
    for example in examples:
        mark = "right" if example["label"] == example["truth"] else "wrong"
        print(f"  {example['file']}: {example['label']} ({example['probability']:.0%}), is {example['truth']}: {mark}")
    print(f"the model is in {folder / 'model'}; look at it with: vitrail info {folder}")


def _examples(source: "Source", folder: Path, count: int = 5) -> list[dict[str, Any]]:
    """The saved model's answers on the first held-back images: what was trained is what predicts."""
    from vitrail.pipeline import Pipeline

    records = [source[index] for index in range(min(count, len(source)))]
    answers = Pipeline.load(folder)([image for image, _, _ in records], top=1)
    return [
        {"file": name, "truth": source.class_names[target], "label": best.label, "probability": best.probability}
        for (_, target, name), [best] in zip(records, answers, strict=True)
    ]

"""The command line. Each command is a dataclass: its fields are the options, its docstring the help, `run` the work.

    vitrail demo                      train on the images in the package
    vitrail info ViT-B/16 --json      what a model is and costs
    vitrail predict runs/demo a.jpg   what an image shows
    vitrail convert a.npz b --to timm weights in another format

Nothing here imports torch before a command runs, so that --help answers at once. Exit status: 0 done, 1 done but some
images failed, 2 bad input (one sentence on standard error), 130 interrupted.
"""

import contextlib
import difflib
import io
import json as jsonlib
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from vitrail import __version__
from vitrail.words import overrides, sentence

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
    """A name from docs/zoo.md, such as ViT-B/16, R50+ViT-B/16 or vit_base_patch16_224; or a run, model or weights."""
    image_size: Annotated[tuple[int, ...] | None, arg(metavar="H [W]", help_behavior_hint="")] = None
    """Height and width in pixels of the images that it will see; one number for squares. Without it: the model's."""
    json: Flag = False
    """Print one JSON document on standard output."""

    def run(self, rest: list[str]) -> None:
        from vitrail.info import describe, text

        if self.image_size is not None and len(self.image_size) not in (1, 2):
            raise ValueError(f"--image-size takes height and width, not {len(self.image_size)} numbers.")
        size = (self.image_size[0], self.image_size[-1]) if self.image_size else None
        card = describe(self.model, overrides(rest), size)
        print(jsonlib.dumps(card, indent=2) if self.json else text(card))


@dataclass
class Predict:
    """Say what images show: the most probable classes of each, best first.

    Images are prepared as the weights ask for. Exit status: 0 where all could be read, 1 where some could not, 2 where
    none could.
    """

    model: Positional[Annotated[str, arg(metavar="MODEL")]]
    """A run folder such as runs/demo, a model folder, or a file with weights."""
    images: Positional[Annotated[tuple[str, ...], arg(metavar="IMAGE...", help_behavior_hint="(one or more)")]]
    """Image files (JPEG, PNG, WebP, BMP, GIF, TIFF), and folders, which are searched for them."""
    top: Annotated[int, arg(metavar="N")] = 5
    """How many classes of each image."""
    json: Flag = False
    """Print one JSON document: a list of {file, predictions: [{label, index, probability}]} or {file, error}."""

    def run(self, rest: list[str]) -> None:
        from vitrail.data.decode import find

        if self.top < 1:
            raise ValueError(f"--top is {self.top}; it must be 1 or more.")
        if not self.images:
            raise ValueError("vitrail predict needs an image after the model; name files or folders.")
        files = [file for name in self.images for file in find(Path(name))]
        _predict(self.model, files, self.top, self.json)


@dataclass
class Convert:
    """Write weights in another format, bit for bit where the format can hold them.

    google and torchvision are files, vitrail, timm and huggingface are folders; timm is a file where TARGET is named
    like one (.safetensors, .pth).
    """

    source: Positional[Annotated[str, arg(metavar="SOURCE")]]
    """A file or folder with weights of any of these formats, a run folder, or hf-hub:OWNER/NAME."""
    target: Positional[Annotated[str, arg(metavar="TARGET")]]
    """What is written; it must not exist yet."""
    to: Literal["vitrail", "google", "timm", "huggingface", "torchvision"] = "vitrail"
    """The format of TARGET."""
    heads: Annotated[int, arg(metavar="N")] = 0
    """The number of attention heads, where the format does not tell it."""
    json: Flag = False
    """Print what was done as one JSON document."""

    def run(self, rest: list[str]) -> None:
        from vitrail.pipeline import locate
        from vitrail.weights.hub import resolve
        from vitrail.weights.load import read
        from vitrail.weights.save import save

        weights = read(locate(resolve(self.source)), heads=self.heads or None)
        lost = save(weights, Path(self.target), self.to)
        left = [] if self.to == weights.format else sorted(weights.extra)
        if self.json:
            done = {"source": self.source, "from": weights.format, "target": self.target, "to": self.to}
            print(jsonlib.dumps({**done, "tensors": len(weights.tensors), "lost": lost, "left_out": left}, indent=2))
            return
        print(f"{self.target}: {len(weights.tensors)} tensors, from {weights.format} to {self.to}")
        for words in lost:
            print(f"  {self.to} has no word for {words}")
        if left:
            print(f"  left out, for they are not the model's: {', '.join(left[:5])}{' ...' * (len(left) > 5)}")


Command = Demo | Resume | Info | Predict | Convert
COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "info": Info,
    "predict": Predict,
    "convert": Convert,
    "resume": Resume,
}
OVERRIDABLE = (Info,)


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Exits with the status that the first lines of this file name."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command, rest = _parse(arguments)
        command.run(rest)
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (ValueError, OSError) as error:
        print(f"vitrail: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("vitrail: interrupted", file=sys.stderr)
        sys.exit(130)


def _parse(arguments: list[str]) -> tuple[Command, list[str]]:
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
            raise ValueError(sentence(name, said.getvalue())) from None
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


def _predict(model: str, files: list[Path], top: int, json: bool) -> None:
    """Prints what each file shows, as the answers come; exits with 1 or 2 where some or all could not be read."""
    import torch

    from vitrail.log import say, track
    from vitrail.pipeline import Pipeline

    pipeline = Pipeline.load(model)
    pipeline.model.to("cuda" if torch.cuda.is_available() else "cpu")
    results = pipeline.stream(files, top)
    # Where the answers appear on a terminal, they are the progress.
    bar = len(files) > 1 and (json or not sys.stdout.isatty())
    document, failed = [], 0
    for file, result in zip(files, track(results, len(files), "predicting") if bar else results, strict=True):
        if isinstance(result, ValueError):
            failed += 1
            say(f"vitrail: {result}")
            document.append({"file": str(file), "error": str(result)})
            continue
        document.append({"file": str(file), "predictions": [asdict(answer) for answer in result]})
        if not json:
            print(f"{file}: {', '.join(f'{answer.label} {answer.probability:.1%}' for answer in result)}", flush=True)
    if json:
        print(jsonlib.dumps(document, indent=2))
    if failed and len(files) > 1:
        say(f"vitrail: {failed} of {len(files)} images could not be read.")
    if failed:
        sys.exit(2 if failed == len(files) else 1)


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

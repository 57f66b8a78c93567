"""The command line. Each command is a dataclass: its fields are the options, its docstring the help, `run` the work.

    vitrail demo                      train on the images in the package
    vitrail train --data photos       a model by a recipe, or by the one for small images
    vitrail predict runs/demo a.jpg   what an image shows

training.py and finetuning.py train, by fitting.py; judging.py and weights.py use what was trained; packing.py makes
data small.

Nothing here imports torch before a command runs, so that --help answers at once. Exit status: 0 done, 1 done but some
images failed or something is wrong with them, 2 bad input (one sentence on standard error), 130 interrupted.
"""

import contextlib
import difflib
import inspect
import io
import os
import shutil
import sys
import textwrap

import tyro

from vitrail import __version__
from vitrail.cli.data import Pack
from vitrail.cli.evaluate import Check, Evaluate
from vitrail.cli.finetune import Finetune
from vitrail.cli.options import paragraphs
from vitrail.cli.train import Demo, Resume, Train, listing, page, recipes
from vitrail.cli.weights import Convert, Info, Predict
from vitrail.cli.words import sentence
from vitrail.runtime.malloc import keep_freed

Command = Demo | Train | Finetune | Resume | Evaluate | Predict | Info | Convert | Check | Pack
COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "train": Train,
    "finetune": Finetune,
    "resume": Resume,
    "evaluate": Evaluate,
    "predict": Predict,
    "info": Info,
    "convert": Convert,
    "data check": Check,
    "data pack": Pack,
}
OVERRIDABLE = (Info, Train, Finetune)
HELP = ("-h", "--help")


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Exits with the status that the first lines of this file name."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command, rest = _parse(arguments)
        keep_freed()
        command.run(rest)
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except ValueError as error:
        print(f"vitrail: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"vitrail: {f'{error.filename}: {error.strerror}' if error.filename else error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("vitrail: interrupted", file=sys.stderr)
        sys.exit(130)


def _parse(arguments: list[str]) -> tuple[Command, list[str]]:
    """The command, and the options that are none of its own. ValueError, one sentence, for what cannot be read."""
    name, given = _named(arguments)
    kind, said = COMMANDS[name], io.StringIO()
    if set(HELP) & set(given):
        _introduce(kind, given)
    try:
        with contextlib.redirect_stderr(said):
            command, rest = tyro.cli(
                kind,
                prog=f"vitrail {name}",
                description="",
                args=given,
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


def _named(arguments: list[str]) -> tuple[str, list[str]]:
    """The command's name, of one word or two, and what follows it. ValueError where there is no such command."""
    for words in (1, 2):
        if (name := " ".join(arguments[:words])) in COMMANDS:
            return name, arguments[words:]
    name = arguments[0] if arguments else ""
    if name in HELP or (name == "data" and set(HELP) & set(arguments)):
        print(_help())
        sys.exit(0)
    if name == "--version":
        print(__version__)
        sys.exit(0)
    if not name:
        raise ValueError("name a command; vitrail --help lists them.")
    if name == "data":
        raise ValueError("say what to do with the data: vitrail data check DATA, or data pack DATA FOLDER")
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}."
    raise ValueError(f"there is no command {name!r}; {hint}")


def _introduce(kind: type[Command], given: list[str]) -> None:
    """Prints what a command is for, before tyro's help on its options, which would leave long lines as they are.

    Exits with 0 where all of the help is a recipe's page.
    """
    width = shutil.get_terminal_size().columns
    if kind is Train and (shown := next((word for word in given if word in recipes()), None)):
        print(page(shown, width))
        sys.exit(0)
    print(paragraphs(inspect.getdoc(kind) or "", width), end="\n\n")
    if kind is Train:
        print(listing(width), end="\n\n")


def _help() -> str:
    """The commands, with the first line of what each has to say."""
    width = shutil.get_terminal_size().columns
    lines = ["usage: vitrail COMMAND ...", "", "The Vision Transformer, from a folder of images to a model.", ""]
    for name, kind in COMMANDS.items():
        first = (inspect.getdoc(kind) or "").splitlines()[0]
        lines += textwrap.wrap(first, width, initial_indent=f"  {name:12}", subsequent_indent=" " * 14)
    return "\n".join([*lines, "", "vitrail COMMAND --help shows a command's options."])

"""The command line. Each command is a dataclass: its fields are the options, its docstring the help, `run` the work.

Nothing here imports torch before a command runs, so that --help answers at once. Exit status: 0 done, 1 done but some
images failed or something is wrong with them, 2 bad input (one sentence on standard error), 130 interrupted.
"""

import difflib
import inspect
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vitrail import __version__
from vitrail.cli.data import Check, Pack
from vitrail.cli.evaluate import Evaluate
from vitrail.cli.explain import Explain
from vitrail.cli.export import BenchmarkExport, Export
from vitrail.cli.fewshot import Fewshot
from vitrail.cli.finetune import Finetune
from vitrail.cli.options import Command, columns, parse
from vitrail.cli.plan import Plan
from vitrail.cli.pretrain import Pretrain
from vitrail.cli.report import Report
from vitrail.cli.serve import Serve
from vitrail.cli.study import Study
from vitrail.cli.train import Demo, Resume, Train
from vitrail.cli.weights import Convert, Info, Predict
from vitrail.config import attribute

COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "train": Train,
    "finetune": Finetune,
    "pretrain": Pretrain,
    "resume": Resume,
    "evaluate": Evaluate,
    "predict": Predict,
    "fewshot": Fewshot,
    "explain": Explain,
    "export": Export,
    "benchmark-export": BenchmarkExport,
    "serve": Serve,
    "report": Report,
    "info": Info,
    "convert": Convert,
    "plan": Plan,
    "study": Study,
    "data check": Check,
    "data pack": Pack,
}
HELP = {"-h", "--help"}
ABOUT = "usage: vitrail COMMAND ...\n\nThe Vision Transformer, from a folder of images to a model.\n\n"
MORE = "\n\nvitrail COMMAND --help shows a command's options."


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Exits with the status that the first lines of this file name."""
    status = 1
    try:
        _main(arguments)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
        raise
    finally:
        if status != 1 and (distributed := sys.modules.get("vitrail.runtime.distributed")):
            distributed.leave(status)


def _main(arguments: list[str] | None) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _heard():
            _run(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except ValueError as error:
        _end(str(error), 2)
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)
    except KeyboardInterrupt:
        _end("interrupted", 130)


@contextmanager
def _heard() -> Iterator[None]:
    """A stop by a scheduler and a terminal that closes are as Ctrl-C: they end what is done in order."""

    def ask(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, *(() if sys.platform == "win32" else (signal.SIGHUP,))) if main else ()
    earlier = {n: signal.signal(n, ask) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _end(sentence: str, status: int) -> None:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = f", rank {os.environ.get('RANK', '?')} on {socket.gethostname()}" if world > 1 else ""
    print(f"vitrail{rank}: {sentence}\n", end="", file=sys.stderr)  # in one piece, beside what others say
    sys.exit(status)


def _run(arguments: list[str]) -> None:
    name, words = _named(arguments)
    kind, prog = COMMANDS[name], f"vitrail {name}"
    for word in words:
        if ".py:" in word:  # code of the user's own, which may run because it is named here
            attribute(word.partition("=")[2] if word.startswith("--") else word, run=True)
    if HELP & set(words):
        kind.help(prog, words)
    command, given = parse(kind, prog, words)
    for file in command.code:
        attribute(f"{file}:__name__", run=True)
    from vitrail.runtime.malloc import keep_freed

    keep_freed()
    command.run(given)


def _named(arguments: list[str]) -> tuple[str, list[str]]:
    """The command's name, of one word or two, and what follows it. ValueError where there is no such command."""
    for words in (1, 2):
        if (name := " ".join(arguments[:words])) in COMMANDS:
            return name, arguments[words:]
    if HELP & set(arguments):
        print(ABOUT + columns({name: inspect.getdoc(kind) or "" for name, kind in COMMANDS.items()}) + MORE)
        sys.exit(0)
    if not arguments:
        raise ValueError("name a command; vitrail --help lists them.")
    name = " ".join(arguments[: 2 if arguments[0] == "data" else 1])
    if name == "--version":
        print(__version__)
        sys.exit(0)
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}."
    raise ValueError(f"there is no command {name!r}; {hint}")

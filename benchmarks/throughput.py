"""Speed and memory of the same ViT in Vitrail, timm, transformers and torchvision, in one run.

    python -m benchmarks.throughput --json throughput.json
    python -m benchmarks.throughput --cases Ti/16@224 --modes eager --rounds 9 --repeats 3
    python -m benchmarks.throughput --libraries timm,torchvision --cases B/16@384 --passes train

fp32 on a CPU, bf16 autocast on a GPU. Tables go to standard output, progress to standard error, and the raw rounds to
the JSON file, which is rewritten after each setting: an interrupted run keeps what it has. How: benchmarks/measure.py.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import command
from benchmarks.command import known, names, positive
from benchmarks.machine import table
from benchmarks.measure import Setting, batch_of, memory, speeds
from benchmarks.peers import BUILDERS, Case
from benchmarks.rounds import Record, images_per_second, of_limit, report

PASSES, MODES = ("forward", "train"), ("eager", "compiled")
CASES = ("Ti/4@32", "Ti/16@224", "S/16@224", "B/16@224", "B/16@384")
COLUMNS = {"img/s": images_per_second, "of matrix rate": of_limit}


def libraries(parser: ArgumentParser, default: Sequence[str], cases: Sequence[str]) -> None:
    """Adds the options that measure.py needs, besides those that every topic has."""
    parser.add_argument("--libraries", type=names, default=tuple(default), help="the first is compared with the others")
    parser.add_argument("--cases", type=names, default=tuple(cases))
    parser.add_argument("--repeats", type=positive, default=1, help="runs in fresh processes")
    parser.add_argument("--burst", type=float, default=1.0, help="seconds of one library's turn")
    parser.add_argument(
        "--default-allocator", dest="keep_freed", action="store_false", help="do not keep freed memory mapped"
    )


def check(options: Namespace, parser: ArgumentParser) -> None:
    """Ends the program if a library or a case is not known."""
    known((label.partition(":")[0] for label in options.libraries), BUILDERS, parser)
    try:
        options.cases = [Case.parse(text) for text in options.cases]
    except ValueError as error:
        parser.error(str(error))


def parse(arguments: Sequence[str] | None) -> Namespace:
    """The command line, checked."""
    parser = command.parser("throughput", __doc__)
    libraries(parser, tuple(BUILDERS), CASES)
    parser.add_argument("--passes", type=names, default=PASSES, help=",".join(PASSES))
    parser.add_argument("--modes", type=names, default=MODES, help=",".join(MODES))
    parser.add_argument("--forward-batch", type=positive, help="instead of 128, 16, 16, 8 and 4 for the five cases")
    parser.add_argument("--train-batch", type=positive, help="instead of 128, 8, 8, 4 and 2")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--no-speed", dest="speed", action="store_false")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    options = parser.parse_args(arguments)
    check(options, parser)
    known(options.passes, PASSES, parser)
    known(options.modes, MODES, parser)
    if options.device == "auto":
        options.device = "cuda" if gpu() else "cpu"
    return options


def gpu() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def settings(options: Namespace, modes: Sequence[str]) -> list[Setting]:
    """All settings, in the order of the result."""
    batches = {"forward": options.forward_batch, "train": options.train_batch}
    return [
        Setting(str(case), pass_name, mode, batches[pass_name] or batch_of(case, pass_name, options.device))
        for case in options.cases
        for pass_name in options.passes
        for mode in modes
    ]


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Measures memory first, since it is short, and only eager: what a compiler keeps is not the library's doing."""
    for row in settings(options, ("eager",)) if options.memory else ():
        records.append(memory(row, options))
        yield
    if options.speed:
        with tempfile.TemporaryDirectory(prefix="vitrail-benchmark-") as cache:
            options.cache = Path(cache)
            yield from speeds(options, records, settings(options, options.modes))


def text(records: list[Record]) -> str:
    """The tables; memory is in MiB above model and inputs, resident and of tensors alone."""
    rows = [
        [
            record["case"],
            name,
            *("-" if peak is None else f"{peak / 2**20:.1f}" for peak in (held["peak"], held["tensors"])),
        ]
        for record in records
        for name, held in record["libraries"].items()
        if "peak" in held
    ]
    parts = ["Peak memory above model and inputs:", table(["case", "library", "MiB", "tensors"], rows)] if rows else []
    timed = [record for record in records if record["foreign"]]
    return "\n\n".join([*parts, *([report(timed, COLUMNS)] if timed or not rows else [])])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    return command.run("throughput", parse(arguments), measure, text)


if __name__ == "__main__":
    sys.exit(main())

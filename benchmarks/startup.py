"""Seconds until something is there: the command's help, a model, an answer, a step of training; and the imports.

    python -m benchmarks.startup --json startup.json
    python -m benchmarks.startup --rounds 9 --only predict,step

Each program runs in a fresh interpreter, after one round that only warms the file cache and writes the byte code.
Figures are medians of wall time; differences and ratios are taken within a round. Weights and photographs are made
here, random: nothing is fetched.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks import command, weights
from benchmarks.command import known, names
from benchmarks.photographs import draw_photographs, photographs
from benchmarks.pool import program
from benchmarks.rounds import Record, deadline, new, report, seconds, spread, take_turns, values, warm_up

# name -> the arguments of the interpreter.
IMPORTS: dict[str, list[str]] = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import torch, vitrail": ["-c", "import torch; import vitrail"],
    "vitrail.create('ViT-Ti/16')": ["-c", "import vitrail; vitrail.create('ViT-Ti/16')"],
    "import timm": ["-c", "import timm"],
    "timm.create_model(Ti/16)": ["-c", "import timm; timm.create_model('vit_tiny_patch16_224')"],
    "import transformers' ViT": ["-c", "from transformers import ViTForImageClassification"],
    "import torchvision": ["-c", "import torchvision"],
}
TIMM_INFO = "import timm; print(sum(p.numel() for p in timm.create_model('vit_base_patch16_224').parameters()))"
STEP = "from pathlib import Path; from benchmarks import trainee; trainee.{name}(Path('{data}'))"
TOPICS = {
    "help": "vitrail --help",
    "imports": "imports",
    "info": "vitrail info ViT-B/16",
    "predict": "first prediction, Ti/16, one JPEG",
    "step": "first training step, Ti/16",
}
AIMS = "Aims: at most 0.5 s for the help; `import vitrail` adds at most 0.3 s to `import torch`."


def programs(folder: Path, topic: str) -> dict[str, list[str]]:
    """name -> the arguments of the interpreter, whose files are made here. Ours is the first where there is a peer."""
    match topic:
        case "help":
            return {"vitrail": ["-m", "vitrail", "--help"]}
        case "imports":
            return IMPORTS
        case "info":
            return {"vitrail": ["-m", "vitrail", "info", "ViT-B/16"], "timm": ["-c", TIMM_INFO]}
        case "predict":
            model, image = folder / "model", draw_photographs(folder / "one", 1)[0]
            weights.save_random("ViT-Ti/16", model)
            source = weights.RESULT + (weights.TIMM_FILE + weights.TIMM_ONE).format(model=model, image=image)
            return {"vitrail": ["-m", "vitrail", "predict", str(model), str(image)], "timm": ["-c", source]}
        case _:
            draw_photographs(folder / "few", 16)
            data = photographs(folder, folder / "few", 64)
            ours, theirs = (STEP.format(name=name, data=data) for name in ("first_step", "timms_first_step"))
            return {"vitrail": ["-c", ours], "timm": ["-c", theirs]}


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Measures each topic's programs, in every round."""
    for place, topic in enumerate(options.only):
        with tempfile.TemporaryDirectory() as folder:
            chosen = programs(Path(folder), topic)
            turns = {name: partial(program, words, options.timeout) for name, words in chosen.items()}
            records.append(new(TOPICS[topic], "vitrail"))
            warm_up(turns)
            take_turns(records[-1], turns, options.rounds, deadline(options.until, len(options.only) - place))
        yield


def text(records: list[Record]) -> str:
    """The table, and what `import vitrail` adds to `import torch`."""
    parts = [report(records, {"seconds": seconds})]
    for record in records:
        both, torch_only = (values(record, name) for name in ("import torch, vitrail", "import torch"))
        if added := [a - b for a, b in zip(both, torch_only, strict=False)]:
            parts.append(f"vitrail adds {spread(added, '.2f')} s to `import torch`.")
    return "\n\n".join([*parts, AIMS])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser = command.parser("startup", __doc__)
    parser.add_argument("--only", type=names, default=tuple(TOPICS), help=f"of {','.join(TOPICS)}")
    options = parser.parse_args(arguments)
    known(options.only, TOPICS, parser)
    return command.run("startup", options, measure, text)


if __name__ == "__main__":
    sys.exit(main())

"""The commands for weights: what they are (info), what images show (predict), and other formats (convert)."""

import json as jsonlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from vitrail.cli.options import Flag
from vitrail.cli.words import overrides


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
        from vitrail.cli.model_card import describe, text

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
    int8: Flag = False
    """Compute the linear layers of the blocks in 8 bits, on the CPU: faster, and a little less exact; how much, vitrail
    evaluate --int8 measures."""
    json: Flag = False
    """Print one JSON document: a list of {file, predictions: [{label, index, probability}]} or {file, error}."""

    def run(self, rest: list[str]) -> None:
        from vitrail.data.images.decode import find

        if self.top < 1:
            raise ValueError(f"--top is {self.top}; it must be 1 or more.")
        if not self.images:
            raise ValueError("vitrail predict needs an image after the model; name files or folders.")
        files = [file for name in self.images for file in find(Path(name))]
        _predict(self.model, files, self.top, self.int8, self.json)


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


def _predict(model: str, files: list[Path], top: int, int8: bool, json: bool) -> None:
    """Prints what each file shows, as the answers come; exits with 1 or 2 where some or all could not be read."""
    import torch

    from vitrail.pipeline import Pipeline
    from vitrail.progress import say, track

    pipeline = Pipeline.load(model, int8=int8)
    pipeline.task.to("cuda" if torch.cuda.is_available() and not int8 else "cpu")
    results = pipeline.stream(files, top=top)
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

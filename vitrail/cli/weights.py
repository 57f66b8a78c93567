"""The commands for weights: their configuration (info), the classes of images (predict), other formats (convert)."""

import json as jsonlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from vitrail.cli.opening import Opening, Using
from vitrail.cli.options import Command, Flag, Given, Model, Part, override
from vitrail.config import dump
from vitrail.progress import few, say, track

# Of files with weights: such a word is never a model's name, even where there is no such file.
SUFFIXES = {".npz", ".safetensors", ".pth", ".pt", ".bin"}


@dataclass(kw_only=True)
class Info(Opening, Command):
    """Show a model's configuration, parameters, tokens and FLOPs.

    Any field of the configuration can be set after the name: vitrail info ViT-B/16 --classes 10 --patch-size 8.
    """

    extends = True
    model: Model
    """A name from docs/zoo.md, such as ViT-B/16, R50+ViT-B/16 or vit_base_patch16_224; or a run, a model, weights, or a
    file that vitrail export wrote."""

    def run(self, given: Given) -> None:
        from vitrail.cli.model_card import describe, text
        from vitrail.models.zoo import canonical, configure
        from vitrail.tasks.exported import open_session, recognised
        from vitrail.weights.hub import PREFIXES

        path = Path(self.model)
        if recognised(path):
            session = open_session(path)
            about = session.about
            card = describe(self.model, about.model, self.image_size or about.size, about)
            file = {"runtime": session.runtime, "precision": about.precision, "takes": about.size or "any size"}
            card["file"] = file | {"weights": about.weights, "vitrail": about.version}
        elif path.exists() or path.suffix in SUFFIXES or self.model.startswith(PREFIXES):
            if given:
                raise ValueError(f"{path} is a trained model; its fields ({', '.join(given)}) cannot be overridden.")
            weights = self.weights(self.model, brought=False)
            card = describe(self.model, weights.config, self.image_size, weights)
        else:
            said = {**given, "heads": str(self.heads)} if self.heads else given
            config = override(configure(self.model), said, self)
            card = describe(canonical(self.model), config, self.image_size)
        self.answer(card, text(card))


@dataclass(kw_only=True)
class Predict(Using, Command):
    """Predict the classes of images: the most probable ones of each, best first.

    Images are prepared as the weights require. With --out, the same command again goes on with what was stopped. Exit
    status: 0 where all could be read, 1 where some could not, 2 where none could.
    """

    model: Model
    """A run folder such as runs/demo, a model folder, or a file with weights."""
    images: Positional[Annotated[tuple[str, ...], arg(metavar="IMAGE...", help_behavior_hint="(one or more)")]]
    """Image files of any kind that Pillow reads, and folders, which are searched for them."""
    top: Annotated[int, arg(metavar="N")] = 5
    """How many classes of each image."""
    int8: Flag = False
    """Compute the linear layers of the blocks in 8 bits, on the CPU: faster and a little less exact; vitrail evaluate
    --int8 measures how much."""
    out: Annotated[str, arg(metavar="FILE", help_behavior_hint="")] = ""
    """Write the predictions to a file (.parquet, .csv or .jsonl) as its parts get done, for very many images."""
    shard: Annotated[int, arg(metavar="N")] = 1_000
    """Of --out: images that are done again where the work was stopped."""
    part: Part = ""
    json: Flag = False
    """Print one JSON document: a list of {file, predictions: [{label, index, probability}]} or {file, error}."""

    def run(self, given: Given) -> None:
        from vitrail.data.sources.walk import find

        if not self.images:
            raise ValueError("vitrail predict needs an image after the model; name files or folders.")
        files = [file for name in self.images for file in find(Path(name), say)]
        if self.out:
            from vitrail.cli.predictions import write

            _end(*write(self, files))
            return
        if self.part:
            raise ValueError("--part is for predictions that are written to a file; name one with --out.")
        pipeline = self.pipeline(self.model, self.int8)
        results = pipeline.stream(files, top=self.top)
        # On a terminal, the answers themselves show the progress.
        bar = len(files) > 1 and (self.json or not sys.stdout.isatty())
        document, failed = [], 0
        for file, result in zip(files, track(results, len(files), "predicting") if bar else results, strict=True):
            if isinstance(result, ValueError):
                failed += 1
                say(f"vitrail: {result}")
                document.append({"file": str(file), "error": str(result)})
                continue
            document.append({"file": str(file), "predictions": dump(result)})
            if not self.json:
                print(f"{file}: {_shown(document[-1]['predictions'])}", flush=True)
        if self.json:
            print(jsonlib.dumps(document, indent=2))
        _end(failed, len(files))


def _end(failed: int, images: int) -> None:
    """Says how many images could not be read, and exits if any."""
    if failed and images > 1:
        say(f"vitrail: {failed} of {images} images could not be read.")
    if failed:
        sys.exit(2 if failed == images else 1)


def _shown(answer: Any) -> str:
    """An answer, as a document, for people: classes with their probabilities, or another task's names and values."""
    if isinstance(answer, list):
        return ", ".join(map(_shown, answer))
    if isinstance(answer, dict) and "probability" in answer:
        return "{label} {probability:.1%}".format(**answer)
    return ", ".join(f"{name} {value}" for name, value in answer.items()) if isinstance(answer, dict) else str(answer)


@dataclass(kw_only=True)
class Convert(Opening, Command):
    """Write weights in another format, bit for bit where the format can hold them.

    google and torchvision are files, vitrail, timm and huggingface are folders; timm is a file where TARGET is named
    like one (.safetensors, .pth).
    """

    source: Positional[Annotated[str, arg(metavar="SOURCE")]]
    """A file or folder with weights of any of these formats, a run folder, one of its checkpoints, or
    hf-hub:OWNER/NAME."""
    target: Positional[Annotated[str, arg(metavar="TARGET")]]
    """The file or folder to write; it must not exist yet."""
    to: Literal["vitrail", "google", "timm", "huggingface", "torchvision"] = "vitrail"
    """The format of TARGET."""

    def run(self, given: Given) -> None:
        from vitrail.weights.save import save

        target = Path(self.target)
        if (Path(self.source) / "state.json").is_file():
            from vitrail.cli.step import convert

            lost, count = convert(Path(self.source), target, self.to, self)
            form, left = "a checkpoint", []
        else:
            weights = self.weights(self.source)
            lost, count, form = save(weights, target, self.to), len(weights.tensors), weights.format
            left = [] if self.to == form else sorted(weights.extra)
        done = {"source": self.source, "from": form, "target": self.target, "to": self.to}
        done |= {"tensors": count, "lost": lost, "left_out": left}
        lines = [f"{self.target}: {count} tensors, from {form} to {self.to}"]
        lines += [f"  {self.to} cannot express {what}" for what in lost]
        lines += [f"  left out, not part of the model: {few(left)}"] if left else []
        self.answer(done, "\n".join(lines))

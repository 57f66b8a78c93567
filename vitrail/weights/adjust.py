"""What a user says of weights better than their file: pixels, image size, class names.

weights = adjust(weights, image_size=(384, 384), mean=(0.5, 0.5, 0.5))
ids, words = class_file(Path("classes.txt"), 1000)
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.models import vit
from vitrail.weights.format import Weights

WORDNET = re.compile(r"n\d{8}\b")


def adjust(
    weights: Weights, image_size: int | tuple[int, int] | None = None, names: Sequence[str] = (), **pixels: Any
) -> Weights:
    """The same weights with other preprocessing and class names.

    image_size: (height, width) that images are brought to. pixels: other fields of Preprocessing, None for those that
    stay; one number of mean or std is for all channels. ValueError where the fields or the number of names do not fit.
    """
    channels, classes = weights.config.channels, weights.config.classes
    said = {name: value for name, value in pixels.items() if value is not None}
    for name in ("mean", "std"):
        if name in said:
            values = (said[name],) if isinstance(said[name], int | float) else tuple(said[name])
            said[name] = tuple(map(float, values * channels if len(values) == 1 else values))
            if len(said[name]) != channels:
                raise ValueError(f"{name} has {len(said[name])} numbers, but the model reads {channels} channels.")
    if image_size is not None:
        size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        if isinstance(weights.config, vit.Config):
            weights.config.grid(size)
        said["image_size"] = size
    if names and len(names) != classes:
        raise ValueError(f"there are {len(names)} class names, but the head has {classes} classes.")
    notes = weights.notes
    if {"mean", "std", "resize", "interpolation"} & said.keys():
        notes = tuple(note for note in notes if not note.startswith("pixels are a guess"))
    how = replace(weights.preprocessing, **said)
    return replace(weights, preprocessing=how, class_names=tuple(names) or weights.class_names, notes=notes)


def class_file(path: Path, classes: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(ids, names) of the classes in the head's order: a line each of a text file, or {"0": ["n01440764", "tench"]} of
    a JSON one. A WordNet id at the beginning of each line is its id; otherwise both are the line.

    ValueError, naming the file, where it cannot be read, or has not one line for each class.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = _json(json.loads(text)) if path.suffix.lower() == ".json" else text.splitlines()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a list of class names ({error}).") from None
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) != classes:
        raise ValueError(f"{path} has {len(lines)} class names, but the model's head has {classes} classes.")
    if all(WORDNET.match(line) for line in lines):
        names = [line[9:].strip(" ,;:\t") or line for line in lines]
        return tuple(line[:9] for line in lines), tuple(names)
    return tuple(lines), tuple(lines)


def _json(content: Any) -> list[str]:
    if isinstance(content, dict):
        content = [content[key] for key in sorted(content, key=int)]
    return [" ".join(map(str, item)) if isinstance(item, list) else str(item) for item in content]

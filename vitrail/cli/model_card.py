"""The card of `vitrail info`: a model's configuration, parameters, tokens and FLOPs at any image size.

card = describe("ViT-H/14", configure("ViT-H/14", classes=10), (384, 384))      # a dict for JSON
print(text(card))
"""

import json
from dataclasses import asdict, replace
from typing import Any

from vitrail.models import Config, resnet, vit
from vitrail.models.cost import flops, parameters, tokens
from vitrail.tasks.exported import About
from vitrail.weights.format import Weights


def describe(
    name: str, config: Config, image_size: tuple[int, int] | None, weights: Weights | About | None = None
) -> dict[str, Any]:
    """The card of a model for images of (height, width), without it of the model's own size. weights: what it was read
    from, if from anything; an exported file, too.

    "other_remainders" says what a size that the patch does not divide costs under the other choices. ValueError for a
    size that the model does not read, and for a model that is too large.
    """
    size = image_size or config.image_size
    if min(size) < 1:
        raise ValueError(f"an image of {size[0]} x {size[1]} has no pixels; height and width must be 1 or more.")
    try:
        count = parameters(config)
    except RuntimeError as error:  # torch counts the bytes of a tensor even where it allocates none
        raise ValueError(f"{name} with these fields is too large to exist ({error}).") from error
    card = {"name": name, "config": asdict(config), "parameters": count, "image_size": list(size)} | _at(config, size)
    card["preprocessing"] = weights and asdict(weights.preprocessing)
    card["class_names"] = weights and weights.class_names
    if isinstance(config, vit.Config) and any(side % stride for side, stride in zip(size, config.stride, strict=True)):
        fits = size[0] >= config.stride[0] and size[1] >= config.stride[1]  # else it cannot be cropped to patches
        others = {choice: replace(config, remainder=choice) for choice in (("pad", "crop") if fits else ("pad",))}
        card["other_remainders"] = {choice: _at(one, size) for choice, one in others.items() if one != config}
    return card


def _at(config: Config, size: tuple[int, int]) -> dict[str, Any]:
    """Tokens (None for a ResNet), grid and FLOPs at a size."""
    if isinstance(config, resnet.Config):
        return {"tokens": None, "grid": None, "flops": flops(config, size)}
    return {"tokens": tokens(config, size), "grid": list(config.grid(size)), "flops": flops(config, size)}


def text(card: dict[str, Any]) -> str:
    """The card for people."""
    rows = [("parameters", f"{card['parameters']:,}"), ("image", _plain(card["image_size"]))]
    done = {"pad": "padded to ", "crop": "cropped to "} if "other_remainders" in card else {}
    for choice, at in ({card["config"].get("remainder"): card} | card.get("other_remainders", {})).items():
        if at["grid"]:
            rows.append(("tokens", f"{at['tokens']} ({done.get(choice, '')}{_plain(at['grid'])} patches)"))
        rows.append(("forward", f"{at['flops'] / 1e9:.2f} GFLOP" + f"   (--remainder {choice})" * (at is not card)))
    if card["preprocessing"]:
        rows.append(("preprocessing", _plain(card["preprocessing"])))
    rows += [(name, _plain(value)) for name, value in card.get("file", {}).items()]
    if names := card["class_names"]:
        rows.append(("classes", ", ".join(names if len(names) <= 20 else [*names[:10], f"... ({len(names)} in all)"])))
    lines = [card["name"], *(f"  {name:14}{words}" for name, words in rows), "  configuration"]
    return "\n".join(lines + [f"    {field:18}{_plain(value)}" for field, value in card["config"].items()])


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        sides = all(isinstance(item, int) for item in value)
        return (" x " if sides else " / ").join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, float):  # 0.875, not the 0.8749999999999999 of a folder that has it so
        value = float(f"{value:.6g}")
    return value if isinstance(value, str) else json.dumps(value)

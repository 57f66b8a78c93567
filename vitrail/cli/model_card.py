"""The card of `vitrail info`: a model's configuration, parameters, tokens and FLOPs at any image size.

card = describe("ViT-H/14", {"classes": 10}, image_size=(384, 384))      # a dict for JSON
print(text(card))
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vitrail.models import resnet, vit
from vitrail.models.cost import flops, parameters, tokens
from vitrail.models.zoo import Config, canonical, configure
from vitrail.pipeline import locate
from vitrail.weights.hub import PREFIXES, resolve
from vitrail.weights.load import read

# Of files with weights: such a word is never a model's name, even where there is no such file.
SUFFIXES = (".npz", ".safetensors", ".pth", ".pt", ".bin")


def describe(model: str, overrides: dict[str, Any], image_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The card of a zoo name with overrides, or of a run folder, model folder or file with weights, for images of
    (height, width).

    "other_remainders" says what a size that the patch does not divide costs under the other choices. ValueError as
    `configure` and `weights.load.read` raise, and for overrides of a file or folder.
    """
    preprocessing, class_names = None, None
    if is_file(model):
        if overrides:
            raise ValueError(f"{model} is a trained model; its fields ({', '.join(overrides)}) cannot be overridden.")
        weights = read(locate(resolve(model)))
        name, config, preprocessing = model, weights.config, asdict(weights.preprocessing)
        class_names = None if weights.class_names is None else list(weights.class_names)
    else:
        name, config = canonical(model), configure(model, **overrides)
    size = image_size or config.image_size
    if min(size) < 1:
        raise ValueError(f"an image of {size[0]} x {size[1]} has no pixels; height and width must be 1 or more.")
    try:
        count = parameters(config)
    except RuntimeError as error:  # torch counts the bytes of a tensor even where it allocates none
        raise ValueError(f"{name} with these fields is too large to exist ({error}).") from error
    card = {"name": name, "config": asdict(config), "parameters": count, "image_size": list(size)}
    card |= _at(config, size) | {"preprocessing": preprocessing, "class_names": class_names}
    if isinstance(config, vit.Config) and any(side % stride for side, stride in zip(size, config.stride, strict=True)):
        fits = size[0] >= config.stride[0] and size[1] >= config.stride[1]
        others = [choice for choice in ("pad", "crop") if choice != config.remainder and (fits or choice == "pad")]
        card["other_remainders"] = {choice: _at(replace(config, remainder=choice), size) for choice in others}
    return card


def is_file(model: str) -> bool:
    """Whether it is a file or folder with weights, here or on the Hub, rather than a name of the zoo."""
    return Path(model).exists() or Path(model).suffix in SUFFIXES or model.startswith(PREFIXES)


def _at(config: Config, size: tuple[int, int]) -> dict[str, Any]:
    """Tokens (None for a ResNet), grid and FLOPs at a size."""
    if isinstance(config, resnet.Config):
        return {"tokens": None, "grid": None, "flops": flops(config, size)}
    return {"tokens": tokens(config, size), "grid": list(config.grid(size)), "flops": flops(config, size)}


def text(card: dict[str, Any]) -> str:
    """The card for people."""
    height, width = card["image_size"]
    lines = [card["name"], f"  parameters    {card['parameters']:,}", f"  image         {height} x {width}"]
    lines.append(_cost(card, card["config"].get("remainder") if "other_remainders" in card else None))
    for choice, other in card.get("other_remainders", {}).items():
        lines.append(_cost(other, choice) + f"   (--remainder {choice})")
    if card["preprocessing"]:
        lines.append(f"  preprocessing {_plain(card['preprocessing'])}")
    if card["class_names"]:
        more = f", ... ({len(card['class_names'])} in all)" if len(card["class_names"]) > 20 else ""
        lines.append(f"  classes       {', '.join(card['class_names'][: 10 if more else None])}{more}")
    lines.append("  configuration")
    lines += [f"    {field:18}{_plain(value)}" for field, value in card["config"].items()]
    return "\n".join(lines)


def _cost(at: dict[str, Any], remainder: str | None) -> str:
    cost = f"{at['flops'] / 1e9:.2f} GFLOP"
    if at["grid"] is None:
        return f"  forward       {cost}"
    rows, columns = at["grid"]
    words = {"pad": "padded to ", "crop": "cropped to "}.get(remainder or "", "")
    return f"  tokens        {at['tokens']} ({words}{rows} x {columns} patches)\n  forward       {cost}"


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        sides = all(isinstance(item, int) for item in value)
        return (" x " if sides else " / ").join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, float):  # 0.875, not the 0.8749999999999999 of a folder that has it so
        value = float(f"{value:.6g}")
    return value if isinstance(value, str) else json.dumps(value)

"""How others say what happens to pixels, as our Preprocessing: transformers' processors, torchvision's weights.

Every field of a processor is honoured, or refused by name.
"""

import math
from collections.abc import Mapping
from typing import Any

from vitrail.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocessing

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
# Each processor's own values, where its file does not tell others.
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {"size": 224, "resample": 2, "image_mean": HALF, "image_std": HALF},
    "DeiT": {"size": 256, "crop_size": 224, "do_center_crop": True, "image_mean": HALF, "image_std": HALF},
    "Beit": {"size": 224, "crop_size": 224, "image_mean": HALF, "image_std": HALF},
    "Bit": {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True},
    "CLIP": {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True},
    "Siglip": {"size": 224, "image_mean": HALF, "image_std": HALF},
    "DINOv3ViT": {"size": 224, "resample": 2, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    "ConvNext": {"size": {"shortest_edge": 384}, "crop_pct": 0.875, "image_mean": HALF, "image_std": HALF},
}
COMMON: dict[str, Any] = {"resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "rescale_factor": 1 / 255}
COMMON |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False}
# To these, a whole number is the shorter side, as in the files of transformers before 4.25; to the others both sides.
SHORTER = ("Bit", "CLIP", "ConvNext")
# The processor that a family has where there is no file.
FAMILIES = {"deit": "DeiT", "beit": "Beit", "dinov2": "Bit", "clip": "CLIP", "siglip": "Siglip", "dinov3": "DINOv3ViT"}
FILTERS: dict[Any, Interpolation] = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
# Fields that change no pixel of an ordinary image.
IDLE = {
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "auto_map",
    "do_convert_rgb",
    "num_channels",
}
IDLE |= {"return_tensors", "data_format", "input_data_format", "device", "disable_grouping", "default_to_square"}
IDLE |= {"_valid_processor_keys", "image_seq_length", "_processor_class", "_name_or_path", "transformers_version"}


def processor(found: Mapping[str, Any], kind: str, size: tuple[int, int], channels: int) -> Preprocessing:
    """That of preprocessor_config.json; where it is {}, the family's own for images of `size`, (height, width).

    kind: config.json's model_type. ValueError for a field that asks for what is not done here.
    """
    family = next((name for start, name in FAMILIES.items() if kind.startswith(start)), "ViT")
    named = str(found.get("image_processor_type") or found.get("feature_extractor_type") or "")
    if named:
        family = next((name for name in sorted(PROCESSORS, key=len) if named.lower().startswith(name.lower())), "")
        if not family:
            raise ValueError(f"preprocessor_config.json is of a {named!r}; known are {', '.join(PROCESSORS)}.")
    own = {**COMMON, **PROCESSORS[family]}
    if not found:  # the family's own way at the model's own size
        scale = size[0] / (224 if family != "ConvNext" else 384)
        own["crop_size"] = {"height": size[0], "width": size[1]}
        edge = 256 / 224 * size[0] if kind.startswith("dinov2") else 256 * scale if family == "DeiT" else size[0]
        if kind.startswith("dinov2"):
            own |= {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
        square = {"height": round(edge / size[0] * size[0]), "width": round(edge / size[0] * size[1])}
        own["size"] = {"shortest_edge": round(edge)} if "shortest_edge" in str(own["size"]) else square
    if channels != 3:
        own |= {"image_mean": (0.5,) * channels, "image_std": (0.5,) * channels}
    for name, value in found.items():
        if (
            name not in own
            and name not in IDLE
            and name not in ("crop_size", "crop_pct")
            and value not in (None, False)
        ):
            raise ValueError(f"preprocessor_config.json has {name} {value!r}, which is not done here.")
    own |= {name: value for name, value in found.items() if value is not None and name not in IDLE}
    if type(own["size"]) is int and family in SHORTER:
        own["size"] = {"shortest_edge": own["size"]}
    mean, std = _colour(own, channels)
    height, width, resize, fraction = _size(own, size)
    if own["do_resize"] and own["resample"] not in FILTERS:
        raise ValueError(
            f"preprocessor_config.json resizes by resample {own['resample']!r}; 2 (bilinear) and 3 (bicubic) are known."
        )
    return Preprocessing((height, width), mean, std, resize, fraction, FILTERS.get(own["resample"], "bilinear"))


def _colour(own: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of pixels in [0, 1], whatever they are multiplied by before."""
    lists = []
    for name, idle in (("image_mean", 0.0), ("image_std", 1.0)):
        value = own[name] if own["do_normalize"] else idle
        values = (value,) * channels if isinstance(value, int | float) else tuple(value)
        lists.append(tuple(float(v) for v in values))
    factor = 255 * own["rescale_factor"] if own["do_rescale"] else 255.0
    if abs(factor - 1) < 1e-9:
        return lists[0], lists[1]
    return tuple(v / factor for v in lists[0]), tuple(v / factor for v in lists[1])


def _pair(value: Any, name: str) -> tuple[int, int]:
    """(height, width) of a size in any of the forms that transformers has had."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, (list, tuple)) and len(value) == 2:
        return int(value[0]), int(value[1])
    if isinstance(value, Mapping) and {"height", "width"} <= set(value):
        return int(value["height"]), int(value["width"])
    raise ValueError(f"preprocessor_config.json has {name} {value!r}, which is not a height and a width.")


def _size(own: Mapping[str, Any], size: tuple[int, int]) -> tuple[int, int, Any, float]:
    """(height, width, resize, crop fraction)."""
    if not own["do_resize"]:
        if not own["do_center_crop"]:
            return *size, "native", 1.0
        raise ValueError("preprocessor_config.json crops images without resizing them, which is not done here.")
    asked = own["size"]
    edge = asked.get("shortest_edge") if isinstance(asked, Mapping) else None
    if isinstance(asked, Mapping) and set(asked) - {"shortest_edge", "height", "width"}:
        raise ValueError(f"preprocessor_config.json has size {asked!r}, which is not done here.")
    if edge is not None and "crop_pct" in own:  # ConvNeXt's: no margin from 384 on, and then no crop
        return (edge, edge, "squash", 1.0) if edge >= 384 else (edge, edge, "crop", float(own["crop_pct"]))
    if own["do_center_crop"]:
        height, width = _pair(own.get("crop_size", asked), "crop_size")
        sides = (edge, edge) if edge is not None else _pair(asked, "size")
        if height > sides[0] or width > sides[1]:
            raise ValueError(f"preprocessor_config.json crops {height} x {width} out of {sides[0]} x {sides[1]}.")
        fraction = crop_fraction(min(height, width), sides[0] if height <= width else sides[1])
        if edge is None and tuple(math.floor(s / fraction) for s in (height, width)) != sides:
            raise ValueError(f"preprocessor_config.json crops {height} x {width} out of {sides[0]} x {sides[1]}.")
        return height, width, "squash" if edge is None else "crop", fraction
    if edge is not None:
        raise ValueError("preprocessor_config.json resizes the shorter side and does not crop, which is not done here.")
    return *_pair(asked, "size"), "squash", 1.0


def crop_fraction(side: int, edge: int) -> float:
    """The fraction of fewest decimals by which `side` comes from `edge`, as timm computes it: edge = floor(side / f).

    0.875 for 224 and 256, 0.9 for 224 and 248.
    """
    if not 0 < side < edge:
        return 1.0
    near = ((math.floor(side / edge * 10**digits) - less) / 10**digits for digits in range(1, 16) for less in (0, 1))
    return next((f for f in near if f > 0 and math.floor(side / f) == edge), side / edge)


def processor_of(how: Preprocessing) -> dict[str, Any]:
    """preprocessor_config.json. ValueError for a way of resizing that transformers' processors do not have."""
    height, width = how.image_size
    common = {"image_mean": list(how.mean), "image_std": list(how.std), "do_normalize": True, "do_resize": True}
    common |= {"do_rescale": True, "rescale_factor": 1 / 255, "resample": 3 if how.interpolation == "bicubic" else 2}
    cut = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    if how.resize == "crop":
        edge = {"size": {"shortest_edge": math.floor(min(height, width) / how.crop_fraction)}}
        return {"image_processor_type": "BitImageProcessor", **common, **cut, "do_convert_rgb": True, **edge}
    if how.resize != "squash":
        raise ValueError(f"transformers has no preprocessing that resizes by {how.resize!r}; use squash or crop.")
    if how.crop_fraction == 1:
        return {"image_processor_type": "ViTImageProcessor", **common, "size": {"height": height, "width": width}}
    sides = {"height": math.floor(height / how.crop_fraction), "width": math.floor(width / how.crop_fraction)}
    return {"image_processor_type": "DeiTImageProcessor", **common, **cut, "size": sides}


def torchvision_of(width: int, patch: int, size: tuple[int, int], channels: int) -> tuple[Preprocessing, str]:
    """torchvision's own pixels for the weights that it has of a ViT of this width and patch size at (height, width),
    and what is a guess about them, in words.

    The sizes of `ViT_B_16_Weights` and its like: 384, 512 and 518 are SWAG's, fine-tuned as a whole; 224 is V1, but for
    ViT-H/14, of which there is none.
    """
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
    swag = {(768, 16): 384, (1024, 16): 512, (1280, 14): 518}
    if swag.get((width, patch)) == size[0] == size[1] or ((width, patch) == (1280, 14) and size == (224, 224)):
        return Preprocessing(size, mean, std, "crop", 1.0, "bicubic"), ""
    fraction = crop_fraction(224, 242) if (width, patch) == (1024, 16) else 0.875
    how = Preprocessing(size, mean, std, "crop", fraction, "bilinear")
    known = {(768, 16), (768, 32), (1024, 16), (1024, 32)}
    if (width, patch) in known and size == (224, 224):
        linear = "; those of SWAG_LINEAR have no margin and are bicubic" if (width, patch) in swag else ""
        return how, f"pixels are a guess, those of torchvision's IMAGENET1K_V1{linear}" if linear else ""
    return how, "pixels are a guess, those of torchvision's IMAGENET1K_V1"

"""The zoo: the names under which people know the models, their configurations, sizes and costs.

    model = create("ViT-B/16", classes=10)                 # the paper's name, or timm's: "vit_base_patch16_224"
    config = configure("R50+ViT-B/16", image_size=384)     # any field of the Config may be overridden

The paper's table 1 and section 4.1; Zhai et al., 2022, "Scaling Vision Transformers", for g and G; for the others
timm's definitions, whose names they keep. docs/zoo.md lists every name with its exact cost.
"""

import difflib
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any, TypeVar

import torch

from vitrail.config import parse_field
from vitrail.models import Config, Model, resnet, vit

ConfigT = TypeVar("ConfigT", bound=Config)

# name: (width, depth, heads, MLP)
SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "medium": (512, 12, 8, 2048),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "huge": (1280, 32, 16, 5120),
    "giant": (1408, 40, 16, 6144),
    "giantopt": (1536, 40, 16, 6144),
    "gigantic": (1664, 48, 16, 8192),
}
LETTERS = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge", "g": "giant", "G": "gigantic"}
STEMS = {"R": (), "R26": (2, 2, 2, 2), "R50": (3, 4, 6, 3)}
# R50+ViT-B/16: stage 4 is removed and its blocks are put in stage 3, so that the stride stays 16 (section 4.1).
R50_S16 = (3, 4, 9)
RESNETS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}


def sized(size: str, patch: int, image: int = 224, **more: Any) -> vit.Config:
    """A ViT of a size named in SIZES, square patches and a square image; `more` are other fields."""
    width, depth, heads, mlp_dim = SIZES[size]
    shape = {"width": width, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}
    return vit.Config(**{"image_size": (image, image), "patch_size": (patch, patch), **shape, **more})


def hybrid(size: str, blocks: tuple[int, ...], patch: int = 1, image: int = 224) -> vit.Config:
    """A ViT that reads the feature map of a ResNet."""
    return sized(size, patch, image, stem=resnet.Config(blocks=blocks, classes=0))


def _paper() -> dict[str, Config]:
    zoo: dict[str, Config] = {}
    patches = {"Ti": (8, 16, 32), "S": (8, 14, 16, 32), "B": (8, 14, 16, 32), "L": (8, 14, 16, 32)}
    for letter, size in LETTERS.items():
        for patch in patches.get(letter, (14, 16)):
            zoo[f"ViT-{letter}/{patch}"] = sized(size, patch)
    zoo["R+ViT-Ti/16"] = hybrid("tiny", (), 8)
    zoo["R26+ViT-S/32"] = hybrid("small", STEMS["R26"])
    for letter in "BL":
        zoo[f"R50+ViT-{letter}/16"] = hybrid(LETTERS[letter], R50_S16)
        zoo[f"R50+ViT-{letter}/32"] = hybrid(LETTERS[letter], STEMS["R50"])
    for depth, factor in ((26, 1), (50, 1), (50, 2), (101, 1), (152, 1), (152, 2), (200, 3)):
        zoo[f"BiT-R{depth}x{factor}"] = resnet.Config(blocks=RESNETS[depth], width_factor=factor)
    return zoo


def _supervised() -> dict[str, Config]:
    zoo: dict[str, Config] = {}
    sizes = {
        "tiny": {16: (224, 384)},
        "small": {8: (224,), 16: (224, 384), 32: (224, 384)},
        "base": {8: (224,), 16: (224, 384), 32: (224, 384)},
        "large": {14: (224,), 16: (224, 384), 32: (224, 384)},
        "huge": {14: (224,)},
        "giant": {14: (224,)},
        "gigantic": {14: (224,)},
    }
    for size, patches in sizes.items():
        for patch, images in patches.items():
            for image in images:
                zoo[f"vit_{size}_patch{patch}_{image}"] = sized(size, patch, image)
    for image in (224, 384):
        zoo[f"vit_tiny_r_s16_p8_{image}"] = hybrid("tiny", (), 8, image)
        zoo[f"vit_small_r26_s32_{image}"] = hybrid("small", STEMS["R26"], 1, image)
        zoo[f"vit_base_r50_s16_{image}"] = hybrid("base", R50_S16, 1, image)
        zoo[f"vit_large_r50_s32_{image}"] = hybrid("large", STEMS["R50"], 1, image)
    zoo["vit_base_patch16_224_miil"] = sized("base", 16, qkv_bias=False)
    mean: dict[str, Any] = {"class_token": False, "pool": "avg"}
    for image in (240, 256, 384):
        name = f"vit_medium_patch16_gap_{image}"
        zoo[name] = sized("medium", 16, image, qkv_bias=False, layer_scale=1e-6, **mean)
    zoo["vit_base_patch16_gap_224"] = sized("base", 16, heads=16, **mean)
    zoo["vit_huge_patch14_gap_224"] = sized("huge", 14, **mean)
    zoo["vit_huge_patch16_gap_448"] = sized("huge", 16, 448, **mean)
    zoo["vit_giant_patch16_gap_224"] = sized("giant", 16, **mean)
    for size in ("tiny", "small", "base"):
        zoo[f"deit_{size}_patch16_224"] = sized(size, 16)
    zoo["deit_base_patch16_384"] = sized("base", 16, 384)
    third: dict[str, Any] = {"class_position": False, "layer_scale": 1e-6}
    for size, images in {"small": (224, 384), "medium": (224,), "base": (224, 384), "large": (224, 384)}.items():
        for image in images:
            zoo[f"deit3_{size}_patch16_{image}"] = sized(size, 16, image, **third)
    zoo["deit3_huge_patch14_224"] = sized("huge", 14, **third)
    return zoo


def _self_supervised() -> dict[str, Config]:
    zoo: dict[str, Config] = {}
    for letter in "SB":
        for patch in (8, 16):
            zoo[f"DINO-{letter}/{patch}"] = sized(LETTERS[letter], patch, classes=0)
    for name in ("B/16", "L/16", "H/14"):
        letter, patch = name.split("/")
        zoo[f"MAE-{name}"] = sized(LETTERS[letter], int(patch), classes=0, positions="sincos_mae")
    registers: dict[str, Any] = {"registers": 4, "class_position": False}
    for size in ("small", "base", "large", "giant"):
        shape: dict[str, Any] = {"classes": 0, "layer_scale": 1e-5}
        if size == "giant":  # DINOv2's own g: wider, with a gated MLP
            shape |= {"width": 1536, "heads": 24, "mlp_dim": 4096, "activation": "swiglu"}
        zoo[f"vit_{size}_patch14_dinov2"] = sized(size, 14, 518, **shape)
        zoo[f"vit_{size}_patch14_reg4_dinov2"] = sized(size, 14, 518, **shape, **registers)
    return zoo


def _towers() -> dict[str, Config]:
    zoo: dict[str, Config] = {}
    # SigLIP was trained with the tanh form of GELU; timm has it under some of its names, the exact form under others.
    siglip: tuple[tuple[str, int, vit.Activation, tuple[int, ...]], ...] = (
        ("base", 16, "gelu", (224, 256, 384, 512)),
        ("base", 32, "gelu_tanh", (256,)),
        ("large", 16, "gelu", (256, 384)),
        ("large", 16, "gelu_tanh", (512,)),
        ("so400m", 14, "gelu", (224, 378, 384)),
        ("so400m", 16, "gelu_tanh", (256, 384, 512)),
        ("giantopt", 16, "gelu_tanh", (256, 384)),
    )
    for size, patch, gelu, images in siglip:
        for image in images:
            # 384 / 14 leaves 6 pixels over, and SigLIP was trained without them.
            remainder: vit.Remainder = "crop" if image % patch else "pad"
            shape: dict[str, Any] = {"classes": 0, "class_token": False, "pool": "map", "remainder": remainder}
            zoo[f"vit_{size}_patch{patch}_siglip_{image}"] = sized(size, patch, image, activation=gelu, **shape)
    clip: dict[str, dict[int, tuple[int, ...]]] = {
        "base": {16: (224, 384), 32: (224, 256, 384, 448)},
        "large": {14: (224, 336)},
        "huge": {14: (224, 336, 378)},
        "giant": {14: (224,)},
        "gigantic": {14: (224, 378)},
    }
    tower: dict[str, Any] = {"classes": 0, "pre_norm": True, "patch_bias": False, "norm_eps": 1e-5}
    for size, patches in clip.items():
        for patch, images in patches.items():
            for image in images:
                zoo[f"vit_{size}_patch{patch}_clip_{image}"] = sized(size, patch, image, **tower)
    quick = (("base", 32, 224), ("base", 16, 224), ("large", 14, 224), ("large", 14, 336), ("huge", 14, 224))
    for size, patch, image in (*quick, ("huge", 14, 378), ("gigantic", 14, 224)):
        name = f"vit_{size}_patch{patch}_clip_quickgelu_{image}"
        zoo[name] = sized(size, patch, image, activation="quick_gelu", **tower)
    return zoo


@cache
def zoo() -> Mapping[str, Config]:
    """Every name and its configuration."""
    return _paper() | _supervised() | _self_supervised() | _towers()


def canonical(name: str) -> str:
    """The zoo's own name for `name`: "B/16" and "R50+B/16" are short for "ViT-B/16" and "R50+ViT-B/16".

    ValueError, with the nearest names, where there is none.
    """
    stem, plus, letters = name.rpartition("+")
    for candidate in (name, f"{stem}{plus}ViT-{letters}", f"BiT-{name}"):
        if candidate in zoo():
            return candidate
    folded = {known.lower(): known for known in zoo()}
    near = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(folded[n] for n in near)}?" if near else "ViT-B/16 is one."
    raise ValueError(f"no model is called {name!r}; {hint} All names are in docs/zoo.md.")


def configure(name: str, **overrides: Any) -> Config:
    """The configuration called `name`, with fields replaced. One number stands for a square image_size or patch_size.

    ValueError where the name or a field is unknown (with the nearest), or the fields do not agree.
    """
    return override(zoo()[canonical(name)], name, overrides)


def override(config: ConfigT, name: str, overrides: Mapping[str, Any]) -> ConfigT:
    """`config`, of the model called `name`, with fields replaced; raises as `configure` does."""
    changes = dict(overrides)
    known = [field.name for field in fields(config)]
    for field, value in changes.items():
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(known)}."
            raise ValueError(f"{name} has no field {field!r}; {hint}")
        square = field in ("image_size", "patch_size") and isinstance(value, int)
        changes[field] = parse_field(type(config), field, (value, value) if square else value)
    if isinstance(config, vit.Config) and config.stem and "channels" in changes:
        changes["stem"] = replace(changes.get("stem", config.stem), channels=changes["channels"])
    return replace(config, **changes)


def create(name: str, *, device: torch.device | str | None = None, seed: int | None = None, **overrides: Any) -> Model:
    """A model by name, freshly initialised: `create("ViT-B/16", classes=10, image_size=(192, 256))`.

    seed: makes the initial values a function of it alone; otherwise torch's global generator is used. Raises what
    `configure` raises.
    """
    model = configure(name, **overrides).build("meta")
    if torch.device(device or "cpu").type == "meta":
        return model
    model.to_empty(device=device or torch.get_default_device())
    model.init_weights(seed)
    return model

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
from vitrail.models.config import Rotary

ConfigT = TypeVar("ConfigT", bound=Config)

# name: (width, depth, heads, MLP)
SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "small_plus": (384, 12, 6, 1536),
    "xsmall": (256, 10, 4, 1024),
    "wee": (256, 14, 4, 1280),
    "little": (320, 14, 5, 1792),
    "medium": (512, 12, 8, 2048),
    "mediumd": (512, 20, 8, 2048),
    "betwixt": (640, 12, 10, 2560),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "plus": (896, 12, 14, 3584),
    "so400m": (1152, 27, 16, 4304),
    "huge": (1280, 32, 16, 5120),
    "huge_plus": (1280, 32, 20, 5120),
    "giant": (1408, 40, 16, 6144),
    "giantopt": (1536, 40, 16, 6144),
    "gigantic": (1664, 48, 16, 8192),
    "7b": (4096, 40, 32, 8192),
}
LETTERS = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge", "g": "giant", "G": "gigantic"}
BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
R, R26, R50 = (resnet.Config(blocks, classes=0) for blocks in ((), BLOCKS[26], BLOCKS[50]))
# R50+ViT-B/16: stage 4 is removed and its blocks are put in stage 3, so that the stride stays 16 (section 4.1).
R50_S16 = resnet.Config((3, 4, 9), classes=0)

# EVA-02's rotary positions: those of a 16 x 16 grid, whatever the image's size.
EVA = Rotary(10_000.0, centred=False, reference=(16, 16), halves=False)
# DINOv2's own g: wider, with a gated MLP.
GIANT: dict[str, Any] = {"width": 1536, "heads": 24, "mlp_dim": 4096, "activation": "swiglu"}


def sized(size: str, patch: int, image: int = 224, **more: Any) -> vit.Config:
    """A ViT of a size named in SIZES, square patches and a square image; `more` are other fields."""
    width, depth, heads, mlp_dim = SIZES[size]
    shape = {"width": width, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}
    return vit.Config(**{"image_size": (image, image), "patch_size": (patch, patch), **shape, **more})


def family(name: str, rows: str, **more: Any) -> dict[str, Config]:
    """ViTs that have the fields `more` in common. rows: "size/patch image image ...", with commas between."""
    found: dict[str, Config] = {}
    for row in rows.split(", "):
        shape, *images = row.split()
        size, patch = shape.split("/")
        for image in images:
            found[name.format(size=size, patch=patch, image=image)] = sized(size, int(patch), int(image), **more)
    return found


def _paper() -> dict[str, Config]:
    zoo: dict[str, Config] = {}
    patches = {"Ti": (8, 16, 32), **dict.fromkeys("SBL", (8, 14, 16, 32)), **dict.fromkeys("HgG", (14, 16))}
    for letter, size in LETTERS.items():
        for patch in patches[letter]:
            zoo[f"ViT-{letter}/{patch}"] = sized(size, patch)
    zoo["R+ViT-Ti/16"] = sized("tiny", 8, stem=R)
    for letter in "SB":
        zoo[f"R26+ViT-{letter}/32"] = sized(LETTERS[letter], 1, stem=R26)
    for letter in "BL":
        zoo[f"R50+ViT-{letter}/16"] = sized(LETTERS[letter], 1, stem=R50_S16)
        zoo[f"R50+ViT-{letter}/32"] = sized(LETTERS[letter], 1, stem=R50)
    for depth, factor in ((26, 1), (50, 1), (50, 2), (101, 1), (152, 1), (152, 2), (200, 3)):
        zoo[f"BiT-R{depth}x{factor}"] = resnet.Config(BLOCKS[depth], factor)
    return zoo


def _supervised() -> dict[str, Config]:
    name, mean = "vit_{size}_patch{patch}_{image}", {"class_token": False, "pool": "avg"}
    third: dict[str, Any] = {"class_position": False, "layer_scale": 1e-6}
    distilled: dict[str, Any] = {"registers": 1, "pool": "distilled"}
    one: dict[str, Any] = {**mean, "norm_first": False, "layer_scale": 1e-5, "registers": 1}
    four: dict[str, Any] = {**one, "registers": 4}
    return (
        family(name, "tiny/16 224 384, small/8 224, small/16 224 384, small/32 224 384")
        | family(name, "base/8 224, base/16 224 384, base/32 224 384")
        | family(name, "large/14 224, large/16 224 384, large/32 224 384, huge/14 224, giant/14 224, gigantic/14 224")
        | family("vit_tiny_r_s16_p8_{image}", "tiny/8 224 384", stem=R)
        | family("vit_{size}_r26_s32_{image}", "small/1 224 384, base/1 224", stem=R26)
        | family("vit_base_r50_s16_{image}", "base/1 224 384", stem=R50_S16)
        | family("vit_large_r50_s32_{image}", "large/1 224 384", stem=R50)
        | family("vit_base_patch16_224_miil", "base/16 224", qkv_bias=False)
        | family("vit_medium_patch16_gap_{image}", "medium/16 240 256 384", qkv_bias=False, layer_scale=1e-6, **mean)
        | family("vit_base_patch16_gap_224", "base/16 224", heads=16, **mean)
        | family("vit_{size}_patch{patch}_gap_{image}", "huge/14 224, huge/16 448, giant/16 224", **mean)
        | family("vit_{size}_patch16_gap_{image}", "betwixt/16 256", qkv_bias=False, layer_scale=1e-6, **mean)
        | family("vit_{size}_patch16_reg1_gap_256", "wee/16 256, little/16 256, medium/16 256, betwixt/16 256", **one)
        | family("vit_{size}_patch16_reg4_gap_{image}", "little/16 256, medium/16 256", **four)
        | family("vit_{size}_patch16_reg4_gap_{image}", "mediumd/16 256 384, betwixt/16 256 384", **four)
        | family("vit_base_patch16_reg4_gap_256", "base/16 256", **{**four, "layer_scale": None})
        | family("vit_base_patch{patch}_plus_{image}", "plus/16 240, plus/32 256", layer_scale=1e-5)
        | family("vit_small_patch16_36x1_224", "small/16 224", depth=36, layer_scale=1e-5)
        | family("flexivit_{size}", "small/16 240, base/16 240, large/16 240", class_position=False)
        | family("deit_{size}_patch16_{image}", "tiny/16 224, small/16 224, base/16 224 384")
        | family("deit_{size}_distilled_patch16_{image}", "tiny/16 224, small/16 224, base/16 224 384", **distilled)
        | family("deit3_{size}_patch{patch}_{image}", "small/16 224 384, medium/16 224, base/16 224 384", **third)
        | family("deit3_{size}_patch{patch}_{image}", "large/16 224 384, huge/14 224", **third)
    )


def _self_supervised() -> dict[str, Config]:
    zoo = family("DINO-S/{patch}", "small/8 224, small/16 224", classes=0)
    zoo |= family("DINO-B/{patch}", "base/8 224, base/16 224", classes=0)
    for letter, patch in (("B", 16), ("L", 16), ("H", 14)):
        zoo[f"MAE-{letter}/{patch}"] = sized(LETTERS[letter], patch, classes=0, positions="sincos_mae")
    for kind, more in (("", {}), ("_reg4", {"registers": 4, "class_position": False})):
        name, dino = f"vit_{{size}}_patch14{kind}_dinov2", {"classes": 0, "layer_scale": 1e-5, **more}
        zoo |= family(name, "small/14 518, base/14 518, large/14 518", **dino)
        zoo |= family(name, "giant/14 518", **dino, **GIANT)
    return zoo


def _placed() -> dict[str, Config]:
    """Those whose positions are relative or rotary, and EVA, which is of their kin."""
    mean: dict[str, Any] = {"pool": "avg", "norm_first": False}
    keyless: dict[str, Any] = {"key_bias": False}
    beit: dict[str, Any] = {**mean, **keyless, "positions": "none", "relative": "geometric", "layer_scale": 1e-5}
    zoo = family("beit_{size}_patch16_{image}", "base/16 224 384, large/16 224 384 512", **beit)
    zoo |= family("beitv2_{size}_patch16_{image}", "base/16 224, large/16 224", **beit)
    zoo |= family("eva_{size}_patch14_{image}", "large/14 196 336", **mean)
    zoo |= family("eva_{size}_patch14_{image}", "giant/14 224 336 560", **mean, **keyless)
    zoo |= family("eva_giant_patch14_clip_224", "giant/14 224", **keyless)
    second: dict[str, Any] = {"rotary": EVA, "activation": "swiglu", **keyless}
    for rows, mlp_dim, normed in (
        ("tiny/14 224 336", 512, False),
        ("small/14 224 336", 1024, False),
        ("base/14 224 448", 2048, True),
        ("large/14 224 448", 2730, True),
    ):
        zoo |= family("eva02_{size}_patch14_{image}", rows, mlp_dim=mlp_dim, mlp_norm=normed, **mean, **second)
    normed2: dict[str, Any] = {"mlp_norm": True, "attention_norm": True, **second}
    zoo |= family("eva02_{size}_patch{patch}_clip_{image}", "base/16 224", mlp_dim=2048, **normed2)
    zoo |= family("eva02_{size}_patch{patch}_clip_{image}", "large/14 224 336", mlp_dim=2730, **normed2)
    zoo |= _rope_vit()
    third: dict[str, Any] = {"registers": 4, "positions": "none", "rotary": Rotary(), "layer_scale": 1e-5}
    third |= {"norm_eps": 1e-5, "classes": 0, **keyless}
    gated: dict[str, Any] = {**third, "activation": "swiglu", "pool": "avg"}
    none: dict[str, Any] = {"qkv_bias": False, "key_bias": True}
    for kind, bias in (("", none), ("_qkvb", {})):
        name = f"vit_{{size}}_patch16_dinov3{kind}"
        zoo |= family(name, "small/16 256, base/16 256, large/16 256", pool="avg", **{**third, **bias})
        zoo |= family(name, "small_plus/16 256, huge_plus/16 256", **{**gated, **bias})
    zoo |= family("vit_{size}_patch16_dinov3_qkvb", "tiny/16 256", pool="avg", **third)
    zoo |= family("vit_{size}_patch16_dinov3", "7b/16 256", **{**gated, **none})
    return zoo | family("vit_{size}_patch16_lingbot", "small/16 512, base/16 512, large/16 512", **third)


def _rope_vit() -> dict[str, Config]:
    """RoPE-ViT (Heo et al., 2024), and timm's own models of its kind with registers."""
    scaled: dict[str, Any] = {"layer_scale": 1e-5, "class_position": False}
    scaled |= {"rotary": Rotary(100.0, centred=False, rows_first=False, halves=False)}
    sizes = "small/16 224, base/16 224, large/16 224"
    zoo = family("vit_{size}_patch16_rope_224", sizes, **{**scaled, "positions": "none"})
    zoo |= family("vit_{size}_patch16_rope_ape_224", sizes, **scaled)
    gap: dict[str, Any] = {"class_token": False, "pool": "avg", "norm_first": False, "positions": "none"}
    gap |= {"layer_scale": 1e-5, "rotary": EVA, "registers": 1, "key_bias": False}
    zoo |= family("vit_{size}_patch16_rope_reg1_gap_256", "medium/16 256, base/16 256", **gap)
    zoo |= family(
        "vit_{size}_patch16_rope_reg1_gap_256", "mediumd/16 256", **{**gap, "qkv_bias": False, "key_bias": True}
    )
    return zoo | family("vit_{size}_patch16_rope_reg4_gap_256", "betwixt/16 256", **{**gap, "registers": 4})


def _towers() -> dict[str, Config]:
    # SigLIP was trained with the tanh form of GELU; timm has it under some of its names, the exact form under others.
    siglip: dict[str, Any] = {"classes": 0, "class_token": False, "pool": "map"}
    tanh: dict[str, Any] = {"activation": "gelu_tanh", **siglip}
    clip: dict[str, Any] = {"classes": 0, "pre_norm": True, "patch_bias": False, "norm_eps": 1e-5}
    quick: dict[str, Any] = {"activation": "quick_gelu", **clip}
    gap: dict[str, Any] = {"classes": 0, "class_token": False, "pool": "avg"}
    gap_tanh: dict[str, Any] = {"activation": "gelu_tanh", **gap}
    tips: dict[str, Any] = {"classes": 0, "class_position": False, "registers": 1, "layer_scale": 1e-5}
    kinds = ("siglip", "clip", "clip_quickgelu")
    name, plain, quickgelu = (f"vit_{{size}}_patch{{patch}}_{kind}_{{image}}" for kind in kinds)
    return (
        family(name, "base/16 224 256 384 512, large/16 256 384, so400m/14 224 378", **siglip)
        # 384 / 14 leaves 6 pixels over, and SigLIP was trained without them.
        | family(name, "so400m/14 384", remainder="crop", **siglip)
        | family(name, "base/32 256, large/16 512, so400m/16 256 384 512, giantopt/16 256 384", **tanh)
        | family(plain, "base/16 224 384, base/32 224 256 384 448, large/14 224 336, huge/14 224 336 378", **clip)
        | family(plain, "giant/14 224, gigantic/14 224 378, xsmall/16 224, medium/16 224, betwixt/32 224", **clip)
        | family(plain, "medium/32 224", **clip)
        | family("vit_base_patch{patch}_plus_clip_{image}", "plus/16 240", **clip)
        | family("vit_{size}_patch14_reg1_tipsv2", "base/14 448, large/14 448, so400m/14 448", **tips)
        | family("vit_{size}_patch14_reg1_tipsv2", "giant/14 448", **tips, **GIANT)
        | family("vit_{size}_patch{patch}_siglip_gap_{image}", "base/16 224 256 384 512, large/16 256 384", **gap)
        | family("vit_{size}_patch{patch}_siglip_gap_{image}", "so400m/14 224 378 448 896", **gap)
        | family("vit_{size}_patch{patch}_siglip_gap_{image}", "so400m/14 384", remainder="crop", **gap)
        | family("vit_{size}_patch{patch}_siglip_gap_{image}", "base/32 256, large/16 512", **gap_tanh)
        | family("vit_{size}_patch{patch}_siglip_gap_{image}", "so400m/16 256 384 512, giantopt/16 256 384", **gap_tanh)
        | family(quickgelu, "base/16 224, base/32 224, large/14 224 336, huge/14 224 378, gigantic/14 224", **quick)
    )


@cache
def zoo() -> Mapping[str, Config]:
    """Every name and its configuration."""
    return _paper() | _supervised() | _self_supervised() | _placed() | _towers()


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

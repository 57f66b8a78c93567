"""timm's Vision Transformers: our parameter names are theirs, so this is about what the names do not tell.

config, tensors, origin = read(tensors, settings)       # settings: config.json, or {} for a bare state dict
settings = describe(config, preprocessing, class_names) # config.json that timm's "local-dir:" and transformers load
missing = lost(config)                                  # what timm has no word for, in words
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitrail.data.images.preprocessing import Preprocessing, Resize
from vitrail.models import resnet, vit
from vitrail.models.positions import sincos
from vitrail.models.zoo import zoo
from vitrail.weights.mapping import gather, same, scatter
from vitrail.weights.shapes import Shapes, head_count, square

ACTIVATIONS: dict[str, vit.Activation] = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
STEMS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
STEM = "patch_embed.backbone."
RESIZES: dict[str, Resize] = {"center": "crop", "squash": "squash", "border": "pad"}


def recognise(names: Shapes) -> bool:
    """Whether these are timm's names."""
    return "patch_embed.proj.weight" in names and "blocks.0.attn.qkv.weight" in names


def infer(
    shapes: Shapes, settings: Mapping[str, Any], image_size: tuple[int, int] | None, heads: int | None
) -> vit.Config:
    """The configuration: what the shapes tell, then what config.json or the zoo knows of the architecture."""
    arguments = settings.get("model_args") or {}
    known = zoo().get(str(settings.get("architecture")))
    stem = _stem(shapes)
    width, channels, rows, columns = shapes["patch_embed.proj.weight"]
    depth = len({m[1] for name in shapes if (m := re.match(r"blocks\.(\d+)\.", name))})
    mlp_dim = shapes["blocks.0.mlp.fc2.weight"][1]
    token, pre_norm, before = "cls_token" in shapes, "norm_pre.weight" in shapes, "norm.weight" in shapes
    config = vit.Config(
        patch_size=(rows, columns),
        channels=stem.channels if stem else channels,
        width=width,
        depth=depth,
        heads=1,
        mlp_dim=mlp_dim,
        classes=shapes["head.weight"][0] if "head.weight" in shapes else 0,
        pool="map" if "attn_pool.latent" in shapes else "token" if token and before else "avg",
        representation=shapes["pre_logits.fc.weight"][0] if "pre_logits.fc.weight" in shapes else None,
        class_token=token,
        registers=shapes["reg_token"][1] if "reg_token" in shapes else 0,
        activation="swiglu" if shapes["blocks.0.mlp.fc1.weight"][0] == 2 * mlp_dim else "gelu",
        norm_eps=1e-5 if pre_norm else 1e-6,  # CLIP's towers
        norm_first=before,
        pre_norm=pre_norm,
        patch_bias="patch_embed.proj.bias" in shapes,
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
        qk_norm="blocks.0.attn.q_norm.weight" in shapes,
        layer_scale=1e-5 if "blocks.0.ls1.gamma" in shapes else None,
        positions="learned" if "pos_embed" in shapes else "none",
        stem=stem,
    )
    if isinstance(known, vit.Config):
        config = replace(config, norm_eps=known.norm_eps, activation=known.activation, image_size=known.image_size)
        heads = heads or arguments.get("num_heads") or (known.heads if known.width == width else None)
    if arguments.get("act_layer") in ACTIVATIONS and config.activation != "swiglu":
        config = replace(config, activation=ACTIVATIONS[arguments["act_layer"]])
    if arguments.get("global_pool") == "avg" and config.pool == "token":
        config = replace(config, pool="avg")
    config = replace(config, heads=heads or arguments.get("num_heads") or head_count(width, depth))
    size = arguments.get("img_size") or (settings.get("pretrained_cfg") or {}).get("input_size", (0,))[1:]
    size = image_size or ((size, size) if isinstance(size, int) else (tuple(size) or None))
    return _positions(config, shapes["pos_embed"][1], size) if "pos_embed" in shapes else config


def _positions(config: vit.Config, length: int, size: tuple[int, int] | None) -> vit.Config:
    """`config` with the grid that a table of this length is for, and whether [class] has a row in it."""
    if not config.class_token:
        config = replace(config, class_position=False)
    for row in (True, False) if config.class_token else (False,):
        candidate = replace(config, class_position=row)
        if size is not None:
            rows, columns = candidate.grid(size)
            if rows * columns + row == length:
                return replace(candidate, image_size=size)
            floor = replace(candidate, remainder="crop").grid(size)
            if floor[0] * floor[1] + row == length:
                return replace(candidate, image_size=size, remainder="crop")
        try:
            return square(candidate, length, None)
        except ValueError:
            continue
    raise ValueError(f"{length} positions make no square grid; say which image_size=(height, width) they are for.")


def _stem(shapes: Shapes) -> resnet.Config | None:
    root = next((n for n in (f"{STEM}stem.conv.weight", f"{STEM}conv.weight") if n in shapes), None)
    if root is None:
        return None
    units = {tuple(map(int, m.groups())) for n in shapes if (m := re.search(r"stages\.(\d+)\.blocks\.(\d+)\.", n))}
    stages = 1 + max((stage for stage, _ in units), default=-1)
    blocks = tuple(sum(1 for stage, _ in units if stage == s) for s in range(stages))
    width, channels = shapes[root][:2]
    return resnet.Config(blocks=blocks, width_factor=width // 64, channels=channels, classes=0)


def theirs(name: str, config: vit.Config) -> str:
    """timm's name for ours: the same, but for the stem without stages, which timm does not wrap."""
    bare = config.stem is not None and not config.stem.blocks
    return name.replace(f"{STEM}stem.", STEM) if bare else name


def read(
    found: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    image_size: tuple[int, int] | None = None,
    heads: int | None = None,
) -> tuple[vit.Config, dict[str, Tensor], dict[str, str]]:
    """(configuration, tensors under our names, our name -> theirs). ValueError where something does not fit."""
    try:
        config = infer({name: tuple(tensor.shape) for name, tensor in found.items()}, settings, image_size, heads)
    except (KeyError, IndexError) as error:
        raise ValueError(f"there is no tensor {error}: the file is incomplete, or of another architecture.") from None
    expected = {name: t.shape for name, t in vit.ViT(config, torch.device("meta")).state_dict().items()}
    return config, *gather((same(theirs(name, config), name) for name in expected), found.get, expected)


def write(config: vit.Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's state dict. timm adds positions to registers, too, where [class] has one: theirs are 0. What is computed
    here is a table there."""
    found = scatter((same(theirs(name, config), name) for name in tensors), tensors)
    if config.registers and config.class_position and config.positions == "learned":
        table = found["pos_embed"]
        found["pos_embed"] = torch.cat(
            [table[:, :1], table.new_zeros(1, config.registers, config.width), table[:, 1:]], 1
        )
    elif config.positions.startswith("sincos"):
        grid = config.grid(config.image_size)
        found["pos_embed"] = sincos(grid, config.width, config.positions == "sincos_mae").float()[None]
    return found


def ours(config: vit.Config, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `write` wrote, back under our names."""
    names = {theirs(name, config): name for name in vit.ViT(config, torch.device("meta")).state_dict()}
    tensors = {names.get(name, name): tensor for name, tensor in found.items()}
    table = tensors.get("pos_embed")
    if table is not None and config.positions.startswith("sincos"):
        del tensors["pos_embed"]
    elif table is not None and config.registers and config.class_position:
        tensors["pos_embed"] = torch.cat([table[:, :1], table[:, config.prefix :]], 1)
    return tensors


def lost(config: vit.Config) -> list[str]:
    """What timm has no word for, in words; the model folder still holds it, under "vitrail"."""
    words = []
    if config.representation:
        words.append(f"the pre-logits layer of {config.representation}")
    if config.positions.startswith("sincos"):
        words.append("fixed positions (their table is written out for the model's own image size)")
    if config.patch_bias == config.pre_norm:
        words.append("a bias on the patches" + " beside a norm before the blocks" * config.pre_norm)
    if config.norm_eps not in (1e-5, 1e-6):
        words.append(f"eps {config.norm_eps}")
    if config.stem and config.stem.blocks not in STEMS:
        words.append(f"a stem of {config.stem.blocks}")
    if config.stem and config.stem.width_factor != 1:
        words.append(f"a stem {config.stem.width_factor} times as wide")
    return words


def describe(config: vit.Config, how: Preprocessing, class_names: tuple[str, ...] | None) -> dict[str, Any]:
    """config.json: an architecture that can be bent into this model, the arguments that do it, preprocessing, names."""
    if config.stem:
        architecture = STEMS.get(config.stem.blocks, STEMS[()])
    elif config.activation == "swiglu":
        architecture = "vit_giant_patch14_dinov2"
    else:
        architecture = "vit_base_patch32_clip_224" if config.norm_eps == 1e-5 else "vit_base_patch16_224"
    hidden = 2 * config.mlp_dim if config.activation == "swiglu" else config.mlp_dim
    arguments = {
        "img_size": list(config.image_size),
        "patch_size": list(config.patch_size),
        "in_chans": config.channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": (hidden + 0.5) / config.width,  # timm takes the whole part of the product
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": config.layer_scale,
        "class_token": config.class_token,
        "no_embed_class": not config.class_position or config.positions.startswith("sincos"),
        "reg_tokens": config.registers,
        "pre_norm": config.pre_norm,
        "fc_norm": not config.norm_first,
        "global_pool": config.pool,
        "pos_embed": "none" if config.positions == "none" else "learn",
    }
    if config.activation in ACTIVATIONS:
        arguments["act_layer"] = config.activation
    pretrained = {
        "custom_load": False,
        "interpolation": how.interpolation,
        "crop_pct": how.crop_fraction,
        "crop_mode": next((theirs for theirs, ours in RESIZES.items() if ours == how.resize), "squash"),
        "input_size": [config.channels, *how.image_size],
        "fixed_input_size": True,
        "mean": list(how.mean),
        "std": list(how.std),
        "num_classes": config.classes,
        "classifier": "head",
        "first_conv": "patch_embed.proj",
    }
    top = {"num_classes": config.classes, "num_features": config.width, "global_pool": config.pool}
    names = {"label_names": list(class_names)} if class_names else {}
    return {"architecture": architecture, **top, **names, "model_args": arguments, "pretrained_cfg": pretrained}


def preprocessing(config: vit.Config, settings: Mapping[str, Any]) -> Preprocessing:
    """What config.json's pretrained_cfg says; without it, timm's defaults for its ViTs: pixels in [-1, 1], crop 0.9."""
    said = settings.get("pretrained_cfg") or {}
    size = said.get("input_size") or (config.channels, *config.image_size)
    gray = (0.5,) * config.channels
    return Preprocessing(
        (size[1], size[2]),
        tuple(said.get("mean", gray)),
        tuple(said.get("std", gray)),
        RESIZES.get(said.get("crop_mode") or "center", "crop"),
        said.get("crop_pct") or 0.9,
        "bilinear" if said.get("interpolation") == "bilinear" else "bicubic",
    )


def class_names(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes, where config.json has them."""
    names = settings.get("label_names") or (settings.get("pretrained_cfg") or {}).get("label_names")
    return tuple(map(str, names)) if names else None

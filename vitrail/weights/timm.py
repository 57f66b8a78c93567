"""timm's Vision Transformers: our parameter names are theirs, so this is about what names do not tell.

tensors = state_dict(config, ours)                             # under timm's names
settings = describe(config, preprocessing, class_names)        # config.json that timm and transformers load
missing = lost(config, preprocessing)                          # what timm cannot express, in words
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vitrail.data.images.preprocessing import Preprocessing, Resize
from vitrail.models import Config, vit
from vitrail.models.positions import sincos
from vitrail.models.zoo import zoo
from vitrail.weights.format import Place, Weights, as_it_was, from_state_dict
from vitrail.weights.mapping import Entry, added, same, scatter
from vitrail.weights.shapes import Shapes, head_count, placed
from vitrail.weights.tensors import SUFFIXES, write_folder, write_tensors

ACTIVATIONS: dict[str, vit.Activation] = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
STEMS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
STEM = "patch_embed.backbone."
# Arguments of timm's models that are our fields under other names.
ARGUMENTS = {"in_chans": "channels", "embed_dim": "width", "num_heads": "heads", "reg_tokens": "registers"}
ARGUMENTS |= {"init_values": "layer_scale", "global_pool": "pool"}
ARGUMENTS |= {name: name for name in ("depth", "qkv_bias", "qk_norm", "class_token", "pre_norm")}
RESIZES: dict[str, Resize] = {"center": "crop", "squash": "squash", "border": "pad"}


class Timm:
    """The format: a folder with config.json, or a bare state dict where the target is named like a file."""

    name = "timm"

    def recognise(self, place: Place) -> bool:
        return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= place.tensors.keys()

    def read(self, place: Place, image_size: tuple[int, int] | None, heads: int | None) -> Weights:
        settings, shapes = place.settings, Shapes.of(place.tensors)
        config = infer(shapes, settings, image_size, heads)
        how, classes = preprocessing(config, settings), class_names(settings)
        return from_state_dict(self.name, place, config, entries(config), how, classes)

    def write(self, weights: Weights, target: Path) -> list[str]:
        config, how = weights.vit(self.name), weights.preprocessing
        tensors = as_it_was(weights, self.name, state_dict(config, weights.tensors))
        own = weights.original.settings if weights.format == self.name else {}
        if target.suffix in SUFFIXES:
            write_tensors(target, tensors)
        else:
            write_folder(target, tensors, config=own or describe(config, how, weights.class_names))
        return [] if own or target.suffix in SUFFIXES else lost(config, how)


def infer(
    shapes: Shapes, settings: Mapping[str, Any], image_size: tuple[int, int] | None, heads: int | None
) -> vit.Config:
    """The configuration: what the shapes tell, then what config.json or the zoo knows of the architecture."""
    arguments, known = settings.get("model_args") or {}, zoo().get(str(settings.get("architecture")))
    known = known if isinstance(known, vit.Config) else None
    width, channels, rows, columns = shapes.sizes("patch_embed.proj.weight", 4)
    stem = None
    if (root := next((n for n in (f"{STEM}stem.conv.weight", f"{STEM}conv.weight") if n in shapes), None)) is not None:
        outputs, channels, _, _ = shapes.sizes(root, 4)
        stem = shapes.stem(r"stages\.(\d+)\.blocks\.(\d+)\.", outputs, channels)
    depth = shapes.depth(r"blocks\.(\d+)\.")
    heads = heads or arguments.get("num_heads") or (known.heads if known and known.width == width else None)
    mlp_dim = shapes.sizes("blocks.0.mlp.fc2.weight", 2)[1]
    gated = shapes.sizes("blocks.0.mlp.fc1.weight", 2)[0] == 2 * mlp_dim
    gelu = ACTIVATIONS.get(str(arguments.get("act_layer")), known.activation if known else "gelu")
    token, pre_norm, before = "cls_token" in shapes, "norm_pre.weight" in shapes, "norm.weight" in shapes
    averaged = not (token and before) or arguments.get("global_pool") == "avg"
    config = vit.Config(
        image_size=known.image_size if known else (224, 224),
        patch_size=(rows, columns),
        channels=channels,
        width=width,
        depth=depth,
        heads=heads or head_count(width, depth),
        mlp_dim=mlp_dim,
        classes=shapes.size("head.weight"),
        pool="map" if "attn_pool.latent" in shapes else "avg" if averaged else "token",
        representation=shapes.size("pre_logits.fc.weight") or None,
        class_token=token,
        class_position=token,
        registers=shapes.size("reg_token", 1, 3),
        activation="swiglu" if gated else gelu,
        norm_eps=known.norm_eps if known else 1e-5 if pre_norm else 1e-6,  # CLIP's towers
        norm_first=before,
        pre_norm=pre_norm,
        patch_bias="patch_embed.proj.bias" in shapes,
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
        qk_norm="blocks.0.attn.q_norm.weight" in shapes,
        layer_scale=1e-5 if "blocks.0.ls1.gamma" in shapes else None,
        positions="learned" if "pos_embed" in shapes else "none",
        stem=stem,
    )
    if "pos_embed" not in shapes:
        return config
    size = arguments.get("img_size") or (settings.get("pretrained_cfg") or {}).get("input_size", (0,))[1:]
    own = (size, size) if isinstance(size, int) else tuple(size) or None
    # The length of the table tells whether the tokens before the patches have rows in it, and whether the rest is cut.
    rows = shapes.sizes("pos_embed", 3)[1]
    padded = [(config, rows - config.prefix), (replace(config, class_position=False), rows)]
    cropped = [(replace(candidate, remainder="crop"), count) for candidate, count in padded]
    return placed([*padded, *cropped], image_size, own)


def entries(config: Config) -> Iterator[Entry]:
    """Every tensor, with timm's name for it. Where [class] has a row in the table of positions, registers do, too."""
    names, bare = config.build("meta").state_dict(), False
    if isinstance(config, vit.Config):
        bare = config.stem is not None and not config.stem.blocks  # which is not wrapped
        if config.registers and config.prefix_rows and "pos_embed" in names:
            yield from added("reg_token", "pos_embed", config.registers)
            names = {name: tensor for name, tensor in names.items() if name not in ("reg_token", "pos_embed")}
    for name in names:
        yield same(name.replace(f"{STEM}stem.", STEM) if bare else name, name)


def state_dict(config: vit.Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's state dict. What is computed here is a table there."""
    found = scatter(entries(config), tensors)
    if config.positions.startswith("sincos"):
        grid = config.grid(config.image_size)
        found["pos_embed"] = sincos(grid, config.width, config.positions == "sincos_mae").float()[None]
    return found


def lost(config: vit.Config, how: Preprocessing) -> list[str]:
    """What timm cannot express, in words; our model folder still holds it, under "vitrail"."""
    stem = config.stem
    words = {
        f"the pre-logits layer of {config.representation}": config.representation,
        "fixed positions (their table is written out for the model's own image size)": config.positions[:6] == "sincos",
        f"norm before the blocks {config.pre_norm}, bias on the patches {config.patch_bias}": config.pre_norm
        == config.patch_bias,
        f"eps {config.norm_eps}": config.norm_eps not in (1e-5, 1e-6),
        f"a stem of {stem and stem.blocks}": stem and stem.blocks not in STEMS,
        f"a stem {stem and stem.width_factor} times as wide": stem and stem.width_factor != 1,
        f"images resized by {how.resize!r}": how.resize not in RESIZES.values(),
    }
    return [text for text, here in words.items() if here]


def describe(config: vit.Config, how: Preprocessing, class_names: tuple[str, ...] | None) -> dict[str, Any]:
    """config.json: an architecture and the arguments that turn it into this model, preprocessing, class names."""
    gated = config.activation == "swiglu"
    plain = "vit_base_patch32_clip_224" if config.norm_eps == 1e-5 else "vit_base_patch16_224"
    architecture = "vit_giant_patch14_dinov2" if gated else plain
    if config.stem:
        architecture = STEMS.get(config.stem.blocks, STEMS[()])
    arguments = {theirs: getattr(config, ours) for theirs, ours in ARGUMENTS.items()} | {
        "img_size": list(config.image_size),
        "patch_size": list(config.patch_size),
        "mlp_ratio": ((1 + gated) * config.mlp_dim + 0.5) / config.width,  # timm takes the whole part of the product
        "no_embed_class": not config.prefix_rows or config.positions.startswith("sincos"),
        "fc_norm": not config.norm_first,
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
    """That of config.json's pretrained_cfg; without it, timm's defaults for its ViTs: pixels in [-1, 1], crop 0.9."""
    found = settings.get("pretrained_cfg") or {}
    size = found.get("input_size") or (config.channels, *config.image_size)
    gray = (0.5,) * config.channels
    return Preprocessing(
        (size[1], size[2]),
        tuple(found.get("mean", gray)),
        tuple(found.get("std", gray)),
        RESIZES.get(found.get("crop_mode") or "center", "crop"),
        found.get("crop_pct") or 0.9,
        "bilinear" if found.get("interpolation") == "bilinear" else "bicubic",
    )


def class_names(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes, where config.json has them."""
    names = settings.get("label_names") or (settings.get("pretrained_cfg") or {}).get("label_names")
    return tuple(map(str, names)) if names else None

"""timm's Vision Transformers: our parameter names are theirs, so this is about what names do not tell.

tensors = state_dict(config, ours)                             # under timm's names
settings = describe(config, preprocessing, class_names)        # config.json that timm and transformers load
missing = lost(config, preprocessing)                          # what timm cannot express, in words
"""

import math
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vitrail.data.images.preprocessing import Preprocessing, Resize
from vitrail.models import Config, vit
from vitrail.models.positions import sincos
from vitrail.models.relative import relative_count
from vitrail.models.zoo import zoo
from vitrail.weights.format import Asked, Place, Weights, as_it_was, from_state_dict
from vitrail.weights.known import alike, checked, completed, named
from vitrail.weights.mapping import Entry, added, heads_of_two, scatter, zeros
from vitrail.weights.shapes import Shapes, linear_head, placed, renamed
from vitrail.weights.spelling import WHOLE, Cut, spelled
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
# Arguments that are read, that shapes tell as well, or that only training needs.
TOLD = {*ARGUMENTS, "img_size", "patch_size", "mlp_ratio", "no_embed_class", "fc_norm", "pos_embed", "act_layer"}
TOLD |= {"num_classes", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"}
TOLD |= {"drop_path_rate", "weight_init", "fix_init", "dynamic_img_size", "dynamic_img_pad", "strict_img_size"}
TOLD |= {"swiglu_mlp", "scale_mlp", "scale_attn_inner", "num_reg_tokens", "use_abs_pos_emb", "use_rel_pos_bias"}
TOLD |= {"use_shared_rel_pos_bias", "qkv_fused", "use_fc_norm", "use_post_transformer_norm", "norm_layer"}
RESIZES: dict[str, Resize] = {"center": "crop", "squash": "squash", "border": "pad"}


class Timm:
    """The format: a folder with config.json, or a bare state dict where the target is named like a file."""

    name = "timm"

    def recognise(self, place: Place) -> bool:
        return any(n.startswith("blocks.0.") for n in place.named) and "patch_embed.proj.weight" in place.named

    def read(self, place: Place) -> Weights:
        settings, names = place.settings, spelled(place.named)
        shapes = Shapes({ours: tuple(place.tensors[place.named[name]].shape) for ours, name in names.items()})
        names = {ours: place.named[name] for ours, name in names.items()}
        seen = seen_in(shapes)
        head = linear_head(shapes, (seen.width, 2 * seen.width))
        names, shapes = renamed(names, head), Shapes(renamed(shapes, head))
        config = infer(shapes, place)
        how, classes = preprocessing(config, settings), class_names(settings)
        if not settings.get("pretrained_cfg"):
            place.notes.append("pixels are a guess, those of most of timm's ViTs: from -1 to 1, a crop of 0.9")
        return from_state_dict(self.name, place, config, entries(config, Cut.of(names), names), how, classes, names)

    def write(self, weights: Weights, target: Path) -> list[str]:
        config, how = weights.vit(self.name), weights.preprocessing
        if weights.format == self.name:  # under the names of the file, whatever they are
            cut, names = Cut.of(weights.original.names), weights.original.names
            tensors = as_it_was(weights, self.name, scatter(entries(config, cut, names), weights.tensors))
        else:
            tensors = state_dict(config, weights.tensors)
        own = weights.original.settings if weights.format == self.name else {}
        if target.suffix in SUFFIXES:
            write_tensors(target, tensors)
        else:
            write_folder(target, tensors, config=own or describe(config, how, weights.class_names))
        return [] if own or target.suffix in SUFFIXES else lost(config, how)


def seen_in(shapes: Shapes) -> vit.Config:
    """What the shapes of a state dict in our spelling tell; heads, activation, eps and some pools they do not."""
    width, channels, rows, columns = shapes.sizes("patch_embed.proj.weight", 4)
    stem = None
    if (root := next((n for n in (f"{STEM}stem.conv.weight", f"{STEM}conv.weight") if n in shapes), None)) is not None:
        outputs, channels, _, _ = shapes.sizes(root, 4)
        stem = replace(shapes.stem(r"stages\.(\d+)\.blocks\.(\d+)\.", outputs, channels), numerics="timm")
    mlp_dim = shapes.sizes("blocks.0.mlp.fc2.weight", 2)[1]
    gated = "blocks.0.mlp.fc1_g.weight" in shapes or shapes.size("blocks.0.mlp.fc1.weight") == 2 * mlp_dim
    token, before = "cls_token" in shapes, "norm.weight" in shapes
    first, table = "blocks.0.attn.", "relative_position_bias_table"
    shared = f"rel_pos_bias.{table}" in shapes
    distilled, apart = "dist_token" in shapes, f"{first}q_proj.bias" in shapes
    return vit.Config(
        patch_size=(rows, columns),
        channels=channels,
        width=width,
        depth=shapes.depth(r"blocks\.(\d+)\."),
        heads=1,
        mlp_dim=mlp_dim,
        classes=shapes.size("head.weight"),
        pool="map"
        if "attn_pool.latent" in shapes
        else "distilled"
        if "head_dist.weight" in shapes
        else "token"
        if token and before
        else "avg",
        representation=shapes.size("pre_logits.fc.weight") or None,
        class_token=token,
        class_position=token,
        registers=1 if distilled else shapes.size("reg_token", 1, 3),
        activation="swiglu" if gated else "gelu",
        norm_first=before,
        pre_norm="norm_pre.weight" in shapes,
        patch_bias="patch_embed.proj.bias" in shapes,
        qkv_bias=any(f"{first}{name}" in shapes for name in ("qkv.bias", "q_bias", "q_proj.bias")),
        key_bias=f"{first}q_bias" not in shapes and (apart is False or f"{first}k_proj.bias" in shapes),
        qk_norm=f"{first}q_norm.weight" in shapes,
        attention_norm=f"{first}norm.weight" in shapes,
        mlp_norm="blocks.0.mlp.norm.weight" in shapes,
        layer_scale=1e-5 if "blocks.0.ls1.gamma" in shapes else None,
        positions="learned" if "pos_embed" in shapes else "none",
        relative="geometric" if shared or f"{first}{table}" in shapes else "none",
        relative_shared=shared,
        stem=stem,
    )


def infer(shapes: Shapes, place: Place) -> vit.Config:
    """The configuration: what the shapes tell, then what config.json or the zoo knows of the architecture.

    ValueError where config.json names an architecture or an argument that is not known.
    """
    settings, asked = place.settings, place.asked
    arguments = {n: v for n, v in (settings.get("model_args") or {}).items() if not place.ignores(n) or n in TOLD}
    checked(arguments, TOLD, "config.json's model_args")
    architecture = asked.architecture or settings.get("architecture")
    if architecture is not None and asked.architecture is None and architecture not in zoo():
        raise ValueError(
            f"config.json is of the architecture {architecture!r}, which is not known; if one of docs/zoo.md computes "
            "alike, name it with --architecture."
        )
    heads = asked.heads or arguments.get("num_heads")
    # What is called ls1.gamma is of no class of timm's that calls it gamma_1. What is called so, and has the same
    # tensors, is DeiT III's by its authors, or RoPE-ViT's; DeiT's training script saves {"model": ...}.
    longer = any(name.endswith(".ls1.gamma") for name in place.named)
    deit = place.section == "model" and not longer
    of = [n for n, c in zoo().items() if isinstance(c, vit.Config) and not (longer and Cut.timm(c).short)]
    of = [name for name in of if not (deit and "_rope_ape_" in name)]
    seen = seen_in(shapes)
    config = completed(seen, architecture, heads, of, told="pos_embed" in arguments)
    told: dict[str, Any] = {}
    if (gelu := arguments.get("act_layer")) is not None:
        if gelu not in ACTIVATIONS:
            raise ValueError(f"config.json's act_layer is {gelu!r}; known are {', '.join(ACTIVATIONS)}.")
        told["activation"] = ACTIVATIONS[gelu]
    pool = arguments.get("global_pool", settings.get("global_pool"))
    if pool is not None and config.pool not in ("distilled", pool):
        if pool not in ("avg", "token"):
            raise ValueError(f"config.json's global_pool is {pool!r}; known are avg, token and map.")
        told["pool"] = pool
    config = replace(config, **told)
    if config.relative != "none":
        return _windowed(config, shapes, arguments, settings, asked)
    if "pos_embed" not in shapes:
        own = _own_size(arguments, settings) or asked.image_size
        return replace(config, image_size=own) if own else config
    # The length of the table tells whether the tokens before the patches have rows in it, and whether the rest is cut.
    rows = shapes.sizes("pos_embed", 3)[1]
    padded = [(config, rows - config.prefix), (replace(config, class_position=False), rows)]
    if (
        not settings and config.class_token
    ):  # of a bare file only what is known counts: 9 rows are 8 and [class], or 3 x 3
        known = named(architecture) if architecture else None
        where = {known.class_position} if known else {c.class_position for c in alike(seen, of).values()} or {True}
        padded = [pair for pair, placed_too in zip(padded, (True, False), strict=True) if placed_too in where]
    cropped = [(replace(candidate, remainder="crop"), count) for candidate, count in padded]
    return placed([*padded, *cropped], asked.image_size, _own_size(arguments, settings))


def _own_size(arguments: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """The image size that config.json tells."""
    size = arguments.get("img_size") or (settings.get("pretrained_cfg") or {}).get("input_size", (0,))[1:]
    return (size, size) if isinstance(size, int) else tuple(size) or None


def _windowed(
    config: vit.Config, shapes: Shapes, arguments: Mapping[str, Any], settings: Mapping[str, Any], asked: Asked
) -> vit.Config:
    """With the number of heads and the image size that a table of relative positions is made for."""
    table = "rel_pos_bias." if config.relative_shared else "blocks.0.attn."
    rows, heads = shapes.sizes(f"{table}relative_position_bias_table", 2)
    side = (math.isqrt(max(rows - 3, 1)) + 1) // 2
    square = (side * config.stride[0], side * config.stride[1])
    for size in (_own_size(arguments, settings), square, asked.image_size):
        if size and relative_count(config.grid(size)) == rows:
            return replace(config, heads=heads, image_size=size)
    raise ValueError(
        f"{rows} relative positions make no square grid; give their image_size=(height, width), or --image-size H W."
    )


def entries(config: Config, cut: Cut = WHOLE, names: Container[str] | None = None) -> Iterator[Entry]:
    """Every tensor, with timm's name for it. Where [class] has a row in the table of positions, registers do, too.

    cut: what is in pieces. names: those of the file, which may lack the bias of a head, or have a "dist_token".
    """
    ours, bare = config.build("meta").state_dict(), False
    if isinstance(config, vit.Config):
        bare = config.stem is not None and not config.stem.blocks  # which is not wrapped
        register = "dist_token" if config.pool == "distilled" else "reg_token"
        if names is not None and "dist_token" in names:
            register = "dist_token"
        if config.registers and config.prefix_rows and "pos_embed" in ours:
            yield from added(register, "pos_embed", config.registers)
            ours = {name: tensor for name, tensor in ours.items() if name not in ("reg_token", "pos_embed")}
        if config.pool == "distilled" and config.classes:
            yield from heads_of_two({"head": "head_dist"})
            ours = {name: tensor for name, tensor in ours.items() if not name.startswith("head.")}
    for name in ours:
        if name == "head.bias" and names is not None and name not in names:
            yield zeros(name, ours[name].numel())
        else:
            for entry in cut.entries(name):
                yield replace(entry, theirs=tuple(n.replace(f"{STEM}stem.", STEM) if bare else n for n in entry.theirs))


def state_dict(config: vit.Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's state dict. What is computed here is a table there."""
    cut = Cut.timm(config)
    found = {cut.timm_name(name): tensor for name, tensor in scatter(entries(config, cut), tensors).items()}
    return found | _tables(config)


def _tables(config: vit.Config) -> dict[str, Tensor]:
    if not config.positions.startswith("sincos"):
        return {}
    grid = config.grid(config.image_size)
    return {"pos_embed": sincos(grid, config.width, config.positions == "sincos_mae").float()[None]}


def streamed(
    config: vit.Config, like: Mapping[str, Tensor], read: Callable[[str], Tensor]
) -> tuple[dict[str, Tensor], Callable[[str], Tensor]]:
    """`state_dict` for whom it is too large: (shapes and dtypes by timm's names, what gives the tensor of such a name).

    like, read: the same by our names.
    """
    cut = Cut.timm(config)
    table = [*entries(config, cut)]
    made = {cut.timm_name(name): (entry, place) for entry in table for place, name in enumerate(entry.theirs)}
    shapes = {name: entry.back(like[entry.ours])[place] for name, (entry, place) in made.items()}
    tables = _tables(config)

    def get(name: str) -> Tensor:
        if name in tables:
            return tables[name]
        entry, place = made[name]
        return entry.back(read(entry.ours))[place]

    return shapes | tables, get


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

"""Hugging Face's ViT, DeiT, DINOv2 (with registers) and ViTMAE encoder: names on disk, and config.json's numerics.

transformers renames its modules from time to time, but what it writes and what the hub holds keeps these names.
"""

import itertools
import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vitrail.config import parse
from vitrail.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitrail.models import vit
from vitrail.weights.format import Place, Weights, as_it_was, from_state_dict
from vitrail.weights.mapping import Entry, added, layers, rows, same, scatter
from vitrail.weights.shapes import Shapes
from vitrail.weights.tensors import write_folder

# Fields of config.json that are ours under other names.
FIELDS = {"num_channels": "channels", "hidden_size": "width", "num_hidden_layers": "depth"}
FIELDS |= {"num_attention_heads": "heads", "layer_norm_eps": "norm_eps", "qkv_bias": "qkv_bias"}
KINDS = ("vit", "deit", "vit_mae", "dinov2", "dinov2_with_registers")
NAMES = {"vit": "ViTModel", "dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu"}
# Fields that transformers leaves open: how positions are resampled and images cut, and what only training needs.
FREE = {"resample", "remainder", "dropout", "attention_dropout", "drop_path"}


class HuggingFace:
    """The format: a folder with config.json, preprocessor_config.json and a state dict."""

    name = "huggingface"

    def recognise(self, place: Place) -> bool:
        return "model_type" in place.settings

    def read(self, place: Place, image_size: tuple[int, int] | None, heads: int | None) -> Weights:
        settings, kind = place.settings, place.settings["model_type"]
        config = infer(settings, Shapes.of(place.tensors))
        names = entries(config, kind, prefix(kind, place.tensors))
        how = preprocessing(config, kind, place.json("preprocessor_config.json"))
        return from_state_dict(self.name, place, config, names, how, class_names(settings))

    def write(self, weights: Weights, target: Path) -> list[str]:
        own, config = weights.format == self.name, weights.vit(self.name)
        settings = weights.original.settings if own else describe(config, weights.class_names)
        kind, root = settings["model_type"], "vit." if config.classes else ""
        if own:
            root = prefix(kind, set(itertools.chain(*weights.origin.values())))
        tensors = scatter(entries(config, kind, root), weights.tensors)
        again = infer(settings, Shapes.of(tensors))
        for name in (field.name for field in fields(config) if field.name not in FREE):
            if (value := getattr(config, name)) != getattr(again, name):
                raise ValueError(f"transformers' {kind} cannot have {name} {value!r}; choose another format.")
        processor = {"preprocessor_config": processor_of(weights.preprocessing)}
        write_folder(target, as_it_was(weights, self.name, tensors), config=settings, **processor)
        return []


def infer(settings: Mapping[str, Any], shapes: Shapes) -> vit.Config:
    """The configuration that config.json describes. ValueError where it is of another model, or lacks a field."""
    kind = settings["model_type"]
    if kind not in KINDS:
        raise ValueError(f"config.json is of a {kind!r}; known are {', '.join(KINDS)}.")
    root, dino = prefix(kind, shapes), kind.startswith("dinov2")
    gated = shapes.size(f"{root}encoder.layer.0.mlp.weights_out.weight", 1)
    head = shapes.get("classifier.weight", ())
    try:
        width = settings["hidden_size"]
        if settings["hidden_act"] not in ACTIVATIONS:
            raise ValueError(f"the activation {settings['hidden_act']!r} is not known.")
        mlp_dim = int(width * settings["mlp_ratio"]) if dino else settings["intermediate_size"]
        sizes = {name: settings[name] for name in ("image_size", "patch_size")}
        found = {name: [size, size] if isinstance(size, int) else size for name, size in sizes.items()}
        found |= {ours: settings[theirs] for theirs, ours in FIELDS.items()} | {
            "mlp_dim": gated or mlp_dim,
            "activation": "swiglu" if gated else ACTIVATIONS[settings["hidden_act"]],
            # DINOv2's classifier reads [class] beside the mean of the patches, which is not a pooling of ours.
            "classes": head[0] if head[1:] == (width,) else 0,
            "representation": width if f"{root}pooler.dense.weight" in shapes else None,
            # DeiT's distillation token is a register, with its position in its value.
            "registers": {"dinov2_with_registers": settings.get("num_register_tokens", 0), "deit": 1}.get(kind, 0),
            "layer_scale": settings["layerscale_value"] if dino else None,
            "resample": "bicubic_antialias" if kind == "dinov2_with_registers" else "bicubic",
        }
        return parse(vit.Config, {"kind": "vit", "config": found})
    except KeyError as error:
        raise ValueError(f"config.json lacks {error}.") from None


def prefix(kind: str, names: Container[str]) -> str:
    """What stands before the encoder's names: nothing where the file holds the bare model."""
    root = "vit." if kind == "vit_mae" else f"{kind}."
    return root if f"{root}embeddings.cls_token" in names else ""


def entries(config: vit.Config, kind: str, root: str) -> Iterator[Entry]:
    """Every tensor, with Hugging Face's name for it."""
    yield same(f"{root}embeddings.cls_token", "cls_token")
    if kind == "deit":  # its table has a row for the distillation token, too
        yield from added(f"{root}embeddings.distillation_token", f"{root}embeddings.position_embeddings", 1)
    else:
        yield same(f"{root}embeddings.position_embeddings", "pos_embed")
        if config.registers:
            yield same(f"{root}embeddings.register_tokens", "reg_token")
    names = {f"{root}embeddings.patch_embeddings.projection": "patch_embed.proj", f"{root}layernorm": "norm"}
    if config.representation:
        names[f"{root}pooler.dense"] = "pre_logits.fc"
    if config.classes:
        names["classifier"] = "head"
    if kind.startswith("dinov2"):
        hidden = ("weights_in", "weights_out") if config.activation == "swiglu" else ("fc1", "fc2")
        parts = {"norm1": "norm1", "norm2": "norm2", f"mlp.{hidden[0]}": "mlp.fc1", f"mlp.{hidden[1]}": "mlp.fc2"}
    else:
        parts = {"layernorm_before": "norm1", "layernorm_after": "norm2"}
        parts |= {"intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}
    parts["attention.output.dense"] = "attn.proj"
    for i in range(config.depth):
        theirs, ours = f"{root}encoder.layer.{i}", f"blocks.{i}"
        names |= {f"{theirs}.{t}": f"{ours}.{o}" for t, o in parts.items()}
        for leaf in ("weight", "bias") if config.qkv_bias else ("weight",):
            qkv = tuple(f"{theirs}.attention.attention.{part}.{leaf}" for part in ("query", "key", "value"))
            yield rows(qkv, f"{ours}.attn.qkv.{leaf}")
        if config.layer_scale is not None:
            yield same(f"{theirs}.layer_scale1.lambda1", f"{ours}.ls1.gamma")
            yield same(f"{theirs}.layer_scale2.lambda1", f"{ours}.ls2.gamma")
    yield from layers(names)


def class_names(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names in id2label, in order; None where there are none, or only LABEL_0, LABEL_1, ..."""
    labels = settings.get("id2label") or {}
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    return None if not names or all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def preprocessing(config: vit.Config, kind: str, found: Mapping[str, Any]) -> Preprocessing:
    """That of preprocessor_config.json; without one, the defaults of the family's image processor."""
    gray, dino = (0.5,) * config.channels, kind.startswith("dinov2")
    mean, std = (gray, gray) if kind == "vit" or config.channels != 3 else (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = tuple(found.get("image_mean", mean)), tuple(found.get("image_std", std))
    interpolation = "bicubic" if found.get("resample", 3 if dino else 2) == 3 else "bilinear"
    # ViT's processor squashes the image; DINOv2's resizes the shorter side and cuts the centre out.
    height, width = config.image_size
    size = found.get("size", {"shortest_edge": round(height * 256 / 224)} if dino else {})
    edge = size.get("shortest_edge") if isinstance(size, dict) and found.get("do_center_crop", dino) else None
    sides = size if edge is None else found.get("crop_size", {})
    sides = {"height": sides, "width": sides} if isinstance(sides, int) else sides
    target = (sides.get("height", height), sides.get("width", width))
    resize, fraction = ("squash", 1.0) if edge is None else ("crop", crop_fraction(target[0], edge))
    return Preprocessing(target, mean, std, resize, fraction, interpolation)


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
    if how.resize == "crop":
        cut = {"do_center_crop": True, "crop_size": {"height": height, "width": width}, "do_convert_rgb": True}
        edge = {"size": {"shortest_edge": math.floor(min(height, width) / how.crop_fraction)}}
        return {"image_processor_type": "BitImageProcessor", **common, **cut, **edge}
    if how.resize != "squash":
        raise ValueError(f"transformers has no preprocessing that resizes by {how.resize!r}; use squash or crop.")
    return {"image_processor_type": "ViTImageProcessor", **common, "size": {"height": height, "width": width}}


def _ratio(config: vit.Config) -> int:
    """DINOv2's mlp_ratio, a whole number; the gated MLP takes two thirds of it, in steps of 8."""
    for ratio in range(1, 17):
        hidden = config.width * ratio
        if config.mlp_dim == ((hidden * 2 // 3 + 7) // 8 * 8 if config.activation == "swiglu" else hidden):
            return ratio
    raise ValueError(f"transformers' DINOv2 cannot have an MLP of {config.mlp_dim} at width {config.width}.")


def describe(config: vit.Config, names: tuple[str, ...] | None) -> dict[str, Any]:
    """config.json of a model, or of the nearest one. ValueError where it cannot have the classifier or the MLP."""
    if config.classes and (config.layer_scale is not None or config.representation):
        raise ValueError("transformers has no classifier beside LayerScale or pre-logits; choose another format.")
    height, width = config.image_size
    kind = "vit" if config.layer_scale is None else "dinov2_with_registers" if config.registers else "dinov2"
    back = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    settings: dict[str, Any] = {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()} | {
        "model_type": kind,
        "architectures": ["ViTForImageClassification" if config.classes else NAMES[kind]],
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size[0],
        "intermediate_size": config.mlp_dim,
        "hidden_act": back.get(config.activation, "gelu"),
    }
    if kind != "vit":
        settings |= {"mlp_ratio": _ratio(config), "use_swiglu_ffn": config.activation == "swiglu"}
        settings |= {"layerscale_value": config.layer_scale, "num_register_tokens": config.registers}
    if config.classes:
        labels = names or tuple(f"LABEL_{i}" for i in range(config.classes))
        settings |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    return settings

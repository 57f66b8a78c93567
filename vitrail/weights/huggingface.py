"""Hugging Face's ViT, DINOv2 (with registers) and ViTMAE encoder: names on disk, and config.json's numerics.

transformers renames its modules from time to time, but what it writes and what the hub holds keeps these names.

    config, tensors, origin = read(tensors, settings)        # settings: config.json
    state_dict = write(config, tensors, kind)
"""

import math
from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vitrail.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitrail.models import vit
from vitrail.weights.mapping import Entry, gather, rows, same, scatter

KINDS = ("vit", "deit", "vit_mae", "dinov2", "dinov2_with_registers")
NAMES = {"vit": "ViTModel", "dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
ACTIVATIONS: dict[str, vit.Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


def infer(settings: Mapping[str, Any], found: Mapping[str, Tensor]) -> vit.Config:
    """The configuration that config.json describes. ValueError where it is of another model, or lacks a field."""
    kind = settings.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"config.json is of a {kind!r}; known are {', '.join(KINDS)}.")
    try:
        width, activation = settings["hidden_size"], ACTIVATIONS.get(settings["hidden_act"])
        if activation is None:
            raise ValueError(f"the activation {settings['hidden_act']!r} is not known.")
        dino = kind.startswith("dinov2")
        gate = found.get(f"{prefix(kind, found)}encoder.layer.0.mlp.weights_out.weight")
        mlp_dim = width * settings["mlp_ratio"] if dino else settings["intermediate_size"]
        head = found.get("classifier.weight")
        return vit.Config(
            image_size=_pair(settings["image_size"]),
            patch_size=_pair(settings["patch_size"]),
            channels=settings["num_channels"],
            width=width,
            depth=settings["num_hidden_layers"],
            heads=settings["num_attention_heads"],
            mlp_dim=gate.shape[1] if gate is not None else int(mlp_dim),
            activation="swiglu" if gate is not None else activation,
            # DINOv2's classifier reads [class] beside the mean of the patches, which is no pooling of ours.
            classes=head.shape[0] if head is not None and head.shape[1] == width else 0,
            representation=width if f"{prefix(kind, found)}pooler.dense.weight" in found else None,
            # DeiT's distillation token is a register, with its position in its value.
            registers={"dinov2_with_registers": settings.get("num_register_tokens", 0), "deit": 1}.get(kind, 0),
            layer_scale=float(settings["layerscale_value"]) if dino else None,
            norm_eps=settings["layer_norm_eps"],
            qkv_bias=settings["qkv_bias"],
            resample="bicubic_antialias" if kind == "dinov2_with_registers" else "bicubic",
        )
    except KeyError as error:
        raise ValueError(f"config.json lacks {error}.") from None


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def prefix(kind: str, names: Container[str]) -> str:
    """What stands before the encoder's names: nothing where the file holds the bare model."""
    root = "vit." if kind == "vit_mae" else f"{kind}."
    return root if f"{root}embeddings.cls_token" in names else ""


def entries(config: vit.Config, kind: str, root: str) -> Iterator[Entry]:
    """Every tensor, with Hugging Face's name for it."""
    yield same(f"{root}embeddings.cls_token", "cls_token")
    if kind == "deit":
        yield from _distilled(f"{root}embeddings.")
    else:
        yield same(f"{root}embeddings.position_embeddings", "pos_embed")
    if config.registers and kind != "deit":
        yield same(f"{root}embeddings.register_tokens", "reg_token")
    layers = {f"{root}embeddings.patch_embeddings.projection": "patch_embed.proj", f"{root}layernorm": "norm"}
    if config.representation:
        layers[f"{root}pooler.dense"] = "pre_logits.fc"
    if config.classes:
        layers["classifier"] = "head"
    if kind.startswith("dinov2"):
        hidden = ("weights_in", "weights_out") if config.activation == "swiglu" else ("fc1", "fc2")
        parts = {"norm1": "norm1", "norm2": "norm2", f"mlp.{hidden[0]}": "mlp.fc1", f"mlp.{hidden[1]}": "mlp.fc2"}
    else:
        parts = {"layernorm_before": "norm1", "layernorm_after": "norm2"}
        parts |= {"intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}
    parts["attention.output.dense"] = "attn.proj"
    for i in range(config.depth):
        theirs, ours = f"{root}encoder.layer.{i}", f"blocks.{i}"
        layers |= {f"{theirs}.{t}": f"{ours}.{o}" for t, o in parts.items()}
        for leaf in ("weight", "bias") if config.qkv_bias else ("weight",):
            qkv = tuple(f"{theirs}.attention.attention.{part}.{leaf}" for part in ("query", "key", "value"))
            yield rows(qkv, f"{ours}.attn.qkv.{leaf}")
        if config.layer_scale is not None:
            yield same(f"{theirs}.layer_scale1.lambda1", f"{ours}.ls1.gamma")
            yield same(f"{theirs}.layer_scale2.lambda1", f"{ours}.ls2.gamma")
    for theirs, ours in layers.items():
        yield same(f"{theirs}.weight", f"{ours}.weight")
        yield same(f"{theirs}.bias", f"{ours}.bias")


def _distilled(root: str) -> Iterator[Entry]:
    """DeiT's table has a row for the distillation token, too; ours is that token with the row added."""
    token, table = f"{root}distillation_token", f"{root}position_embeddings"
    yield Entry("reg_token", (token, table), lambda a: a[0] + a[1][:, 1:2], lambda t: [t, torch.zeros_like(t)])
    yield Entry(
        "pos_embed",
        (table,),
        lambda a: torch.cat([a[0][:, :1], a[0][:, 2:]], 1),
        lambda t: [torch.cat([t[:, :1], torch.zeros_like(t[:, :1]), t[:, 1:]], 1)],
    )


def sums(kind: str, root: str) -> tuple[str, ...]:
    """Tensors that cannot be told from what we make of them, so that writing back needs them as they were."""
    return (
        tuple(f"{root}embeddings.{n}" for n in ("distillation_token", "position_embeddings")) if kind == "deit" else ()
    )


def read(
    found: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[vit.Config, dict[str, Tensor], dict[str, str]]:
    """(configuration, tensors under our names, our name -> theirs). ValueError where something does not fit."""
    config = infer(settings, found)
    kind = settings["model_type"]
    expected = {name: t.shape for name, t in vit.ViT(config, torch.device("meta")).state_dict().items()}
    return config, *gather(entries(config, kind, prefix(kind, found)), found.get, expected)


def write(config: vit.Config, tensors: Mapping[str, Tensor], kind: str, root: str) -> dict[str, Tensor]:
    """Hugging Face's state dict. ValueError where it has no place for a part of the model."""
    return scatter(entries(config, kind, root), tensors)


def class_names(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names in id2label, in order; None where there are none, or only LABEL_0, LABEL_1, ..."""
    labels = settings.get("id2label") or {}
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    return None if not names or all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def preprocessing(config: vit.Config, kind: str, said: Mapping[str, Any]) -> Preprocessing:
    """What preprocessor_config.json says; without one, the defaults of the family's image processor."""
    gray = ((0.5,) * config.channels, (0.5,) * config.channels)
    mean, std = gray if kind == "vit" or config.channels != 3 else (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = tuple(said.get("image_mean", mean)), tuple(said.get("image_std", std))
    # ViT's processor squashes the image; DINOv2's resizes the shorter side and cuts the centre out.
    dino = kind.startswith("dinov2")
    size = said.get("size", {"shortest_edge": round(config.image_size[0] * 256 / 224)} if dino else {})
    crop = said.get("crop_size", {})
    interpolation = "bicubic" if said.get("resample", 3 if dino else 2) == 3 else "bilinear"
    if isinstance(size, dict) and "shortest_edge" in size and said.get("do_center_crop", dino):
        height, width = crop.get("height", config.image_size[0]), crop.get("width", config.image_size[1])
        # A hair below the quotient, so that height / fraction rounds down to the edge again, as timm computes it.
        fraction = min(1.0, math.nextafter(height / size["shortest_edge"], 0))
        return Preprocessing((height, width), mean, std, "crop", fraction, interpolation)
    sides = {"height": size, "width": size} if isinstance(size, int) else size
    target = (sides.get("height", config.image_size[0]), sides.get("width", config.image_size[1]))
    return Preprocessing(target, mean, std, "squash", 1.0, interpolation)


def processor(how: Preprocessing) -> dict[str, Any]:
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
        if (
            (hidden * 2 // 3 + 7) // 8 * 8 == config.mlp_dim
            if config.activation == "swiglu"
            else hidden == config.mlp_dim
        ):
            return ratio
    raise ValueError(f"transformers' DINOv2 cannot have an MLP of {config.mlp_dim} at width {config.width}.")


def describe(config: vit.Config, names: tuple[str, ...] | None) -> dict[str, Any]:
    """config.json of a model. ValueError where none of these architectures can be it, naming what stands against it."""
    against = {
        "pooling other than [class]": config.pool != "token",
        "positions that are not learned, or not for [class]": config.positions != "learned"
        or not config.class_position,
        "a convolutional stem": config.stem is not None,
        "norms for q and k": config.qk_norm,
        "a norm before the blocks": config.pre_norm or not config.patch_bias,
        "a norm after the pooling": not config.norm_first,
        "registers without LayerScale": bool(config.registers) and config.layer_scale is None,
        "a gated MLP without LayerScale": config.activation == "swiglu" and config.layer_scale is None,
        "a classifier beside LayerScale": bool(config.classes) and config.layer_scale is not None,
        "a pre-logits layer beside a classifier": bool(config.classes and config.representation),
        "a pre-logits layer of another width": config.representation not in (None, config.width),
        "a patch that is not square": config.patch_size[0] != config.patch_size[1],
    }
    if found := [words for words, here in against.items() if here]:
        raise ValueError(f"transformers' ViTs have no {found[0].removeprefix('a ')}; choose another format.")
    height, width = config.image_size
    kind = "vit" if config.layer_scale is None else "dinov2_with_registers" if config.registers else "dinov2"
    back = {ours: theirs for theirs, ours in ACTIVATIONS.items() if theirs != "gelu_pytorch_tanh"}
    settings: dict[str, Any] = {
        "model_type": kind,
        "architectures": [
            {"vit": "ViTForImageClassification" if config.classes else "ViTModel"}.get(kind, NAMES[kind])
        ],
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size[0],
        "num_channels": config.channels,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": back.get(config.activation, "gelu"),
        "layer_norm_eps": config.norm_eps,
        "qkv_bias": config.qkv_bias,
    }
    if kind != "vit":
        settings |= {"mlp_ratio": _ratio(config), "use_swiglu_ffn": config.activation == "swiglu"}
        settings |= {"layerscale_value": config.layer_scale, "num_register_tokens": config.registers}
    if config.classes:
        labels = names or tuple(f"LABEL_{i}" for i in range(config.classes))
        settings |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    return settings

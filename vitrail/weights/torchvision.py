"""torchvision's VisionTransformer: names and numerics (exact GELU, eps 1e-6, corner-aligned bicubic positions).

config, tensors, origin = read(state_dict, image_size=None, heads=None)
state_dict = write(config, tensors)
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vitrail.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitrail.models import vit
from vitrail.weights.mapping import Entry, gather, same, scatter
from vitrail.weights.shapes import Shapes, head_count, square

BLOCK = "encoder.layers.encoder_layer_"


def recognise(names: Shapes) -> bool:
    """Whether these are torchvision's names."""
    return "conv_proj.weight" in names and f"{BLOCK}0.self_attention.in_proj_weight" in names


def infer(shapes: Shapes, image_size: tuple[int, int] | None, heads: int | None) -> vit.Config:
    """The configuration of tensors of these shapes; heads are a guess that the widths of the paper allow."""
    width, channels, rows, columns = shapes["conv_proj.weight"]
    depth = len({m[1] for name in shapes if (m := re.match(rf"{re.escape(BLOCK)}(\d+)\.", name))})
    config = vit.Config(
        patch_size=(rows, columns),
        channels=channels,
        width=width,
        depth=depth,
        heads=heads or head_count(width, depth),
        mlp_dim=shapes[f"{BLOCK}0.mlp.0.weight"][0],
        classes=shapes["heads.head.weight"][0],
        representation=shapes["heads.pre_logits.weight"][0] if "heads.pre_logits.weight" in shapes else None,
        resample="bicubic_corners",
    )
    return square(config, shapes["encoder.pos_embedding"][1], image_size)


def entries(config: vit.Config) -> Iterator[Entry]:
    """Every tensor, with torchvision's name for it."""
    names = {"conv_proj": "patch_embed.proj", "encoder.ln": "norm", "heads.head": "head"}
    if config.representation:
        names["heads.pre_logits"] = "pre_logits.fc"
    for i in range(config.depth):
        theirs, ours = f"{BLOCK}{i}", f"blocks.{i}"
        parts = {"ln_1": "norm1", "self_attention.out_proj": "attn.proj", "ln_2": "norm2"}
        parts |= {"mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2"}
        names |= {f"{theirs}.{t}": f"{ours}.{o}" for t, o in parts.items()}
        yield same(f"{theirs}.self_attention.in_proj_weight", f"{ours}.attn.qkv.weight")
        yield same(f"{theirs}.self_attention.in_proj_bias", f"{ours}.attn.qkv.bias")
    yield same("class_token", "cls_token")
    yield same("encoder.pos_embedding", "pos_embed")
    for theirs, ours in names.items():
        yield same(f"{theirs}.weight", f"{ours}.weight")
        yield same(f"{theirs}.bias", f"{ours}.bias")


def read(
    found: Mapping[str, Tensor], image_size: tuple[int, int] | None = None, heads: int | None = None
) -> tuple[vit.Config, dict[str, Tensor], dict[str, str]]:
    """(configuration, tensors under our names, our name -> theirs). ValueError where something does not fit."""
    config = infer({name: tuple(tensor.shape) for name, tensor in found.items()}, image_size, heads)
    expected = {name: t.shape for name, t in vit.ViT(config, torch.device("meta")).state_dict().items()}
    return config, *gather(entries(config), found.get, expected)


def write(config: vit.Config, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's state dict. ValueError where it has no place for a part of the model."""
    return scatter(entries(config), tensors)


def preprocessing(config: vit.Config) -> Preprocessing:
    """That of torchvision's weights at 224: the shorter side to 256, the centre, ImageNet's mean and deviation."""
    return Preprocessing(config.image_size, IMAGENET_MEAN, IMAGENET_STD, "crop", 0.875, "bilinear")

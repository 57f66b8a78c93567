"""torchvision's VisionTransformer: names and numerics (exact GELU, eps 1e-6, corner-aligned bicubic positions)."""

from collections.abc import Iterator
from pathlib import Path

from vitrail.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitrail.models import vit
from vitrail.weights.format import Place, Weights, as_it_was, from_state_dict
from vitrail.weights.mapping import Entry, layers, same, scatter
from vitrail.weights.shapes import Shapes, head_count, placed
from vitrail.weights.tensors import write_tensors

BLOCK = "encoder.layers.encoder_layer_"


class Torchvision:
    """The format: a state dict. Its preprocessing is that of torchvision's weights at 224."""

    name = "torchvision"

    def recognise(self, place: Place) -> bool:
        return {"conv_proj.weight", f"{BLOCK}0.self_attention.in_proj_weight"} <= place.tensors.keys()

    def read(self, place: Place, image_size: tuple[int, int] | None, heads: int | None) -> Weights:
        config = infer(Shapes.of(place.tensors), image_size, heads)
        how = Preprocessing(config.image_size, IMAGENET_MEAN, IMAGENET_STD, "crop", 0.875, "bilinear")
        return from_state_dict(self.name, place, config, entries(config), how)

    def write(self, weights: Weights, target: Path) -> list[str]:
        tensors = scatter(entries(weights.vit(self.name)), weights.tensors)
        write_tensors(target, as_it_was(weights, self.name, tensors))
        return []


def infer(shapes: Shapes, image_size: tuple[int, int] | None, heads: int | None) -> vit.Config:
    """The configuration of tensors of these shapes; heads are a guess that the widths of the paper allow."""
    width, channels, rows, columns = shapes.sizes("conv_proj.weight", 4)
    depth = shapes.depth(rf"{BLOCK}(\d+)\.")
    config = vit.Config(
        patch_size=(rows, columns),
        channels=channels,
        width=width,
        depth=depth,
        heads=heads or head_count(width, depth),
        mlp_dim=shapes.sizes(f"{BLOCK}0.mlp.0.weight", 2)[0],
        classes=shapes.sizes("heads.head.weight", 2)[0],
        representation=shapes.size("heads.pre_logits.weight") or None,
        resample="bicubic_corners",
    )
    return placed([(config, shapes.sizes("encoder.pos_embedding", 3)[1] - 1)], image_size)


def entries(config: vit.Config) -> Iterator[Entry]:
    """Every tensor, with torchvision's name for it."""
    names = {"conv_proj": "patch_embed.proj", "encoder.ln": "norm", "heads.head": "head"}
    if config.representation:
        names["heads.pre_logits"] = "pre_logits.fc"
    parts = {"ln_1": "norm1", "self_attention.out_proj": "attn.proj", "ln_2": "norm2"}
    parts |= {"mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2"}
    for i in range(config.depth):
        theirs, ours = f"{BLOCK}{i}", f"blocks.{i}"
        names |= {f"{theirs}.{t}": f"{ours}.{o}" for t, o in parts.items()}
        yield same(f"{theirs}.self_attention.in_proj_weight", f"{ours}.attn.qkv.weight")
        yield same(f"{theirs}.self_attention.in_proj_bias", f"{ours}.attn.qkv.bias")
    yield same("class_token", "cls_token")
    yield same("encoder.pos_embedding", "pos_embed")
    yield from layers(names)

"""torchvision's VisionTransformer: names and numerics (exact GELU, eps 1e-6, corner-aligned bicubic positions)."""

from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path

from vitrail.models import vit
from vitrail.weights.format import Asked, Place, Weights, as_it_was, from_state_dict
from vitrail.weights.known import completed
from vitrail.weights.mapping import Entry, layers, same, scatter, zeros
from vitrail.weights.pixels import torchvision_of
from vitrail.weights.shapes import Shapes, linear_head, placed, renamed
from vitrail.weights.tensors import write_tensors

BLOCK = "encoder.layers.encoder_layer_"


class Torchvision:
    """The format: a state dict. Its preprocessing is that of torchvision's own weights of its size."""

    name = "torchvision"

    def recognise(self, place: Place) -> bool:
        return {"conv_proj.weight", f"{BLOCK}0.self_attention.in_proj_weight"} <= place.named.keys()

    def read(self, place: Place) -> Weights:
        shapes = Shapes({name: tuple(place.tensors[file].shape) for name, file in place.named.items()})
        head = None if "heads.head.weight" in shapes else linear_head(shapes, (shapes.size("conv_proj.weight", 0, 4),))
        names, shapes = renamed(place.named, head, "heads.head"), Shapes(renamed(shapes, head, "heads.head"))
        config = infer(shapes, place.asked)
        how, guess = torchvision_of(config.width, config.patch_size[0], config.image_size, config.channels)
        place.notes += [guess] if guess else []
        return from_state_dict(self.name, place, config, entries(config, names), how, names=names)

    def write(self, weights: Weights, target: Path) -> list[str]:
        names = weights.original.names if weights.format == self.name else None
        tensors = scatter(entries(weights.vit(self.name), names), weights.tensors)
        write_tensors(target, as_it_was(weights, self.name, tensors))
        return []


def infer(shapes: Shapes, asked: Asked) -> vit.Config:
    """The configuration of tensors of these shapes; what they do not tell is as in the known models of their width."""
    width, channels, rows, columns = shapes.sizes("conv_proj.weight", 4)
    seen = vit.Config(
        patch_size=(rows, columns),
        channels=channels,
        width=width,
        depth=shapes.depth(rf"{BLOCK}(\d+)\."),
        heads=1,
        mlp_dim=shapes.sizes(f"{BLOCK}0.mlp.0.weight", 2)[0],
        classes=shapes.size("heads.head.weight"),
        representation=shapes.size("heads.pre_logits.weight") or None,
        resample="bicubic_corners",
    )
    known = completed(seen, asked.architecture, asked.heads)
    config = replace(known, image_size=seen.image_size, resample=seen.resample)
    return placed([(config, shapes.sizes("encoder.pos_embedding", 3)[1] - 1)], asked.image_size)


def entries(config: vit.Config, found: Container[str] | None = None) -> Iterator[Entry]:
    """Every tensor, with torchvision's name for it. found: the file's names, where a head may lack its bias."""
    names = {"conv_proj": "patch_embed.proj", "encoder.ln": "norm"}
    if config.classes and found is not None and "heads.head.bias" not in found:
        yield same("heads.head.weight", "head.weight")
        yield zeros("head.bias", config.classes)
    elif config.classes:
        names["heads.head"] = "head"
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

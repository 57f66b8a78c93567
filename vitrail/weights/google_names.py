"""Google's names for the tensors of a ViT, and how its arrays lie: the table of google.py, both directions."""

from collections.abc import Iterator

import torch

from vitrail.models import resnet, vit
from vitrail.weights.mapping import Entry, same

QKV = ("query", "key", "value")


def dense(name: str, ours: str) -> Iterator[Entry]:
    """A layer y = x K + b, K (inputs, outputs)."""
    yield Entry(f"{ours}.weight", (f"{name}/kernel",), lambda a: a[0].T, lambda t: [t.T])
    yield same(f"{name}/bias", f"{ours}.bias")


def conv(name: str, ours: str) -> Entry:
    """A convolution's kernel (H, W, inputs, outputs)."""
    return Entry(
        f"{ours}.weight", (f"{name}/kernel",), lambda a: a[0].permute(3, 2, 0, 1), lambda t: [t.permute(2, 3, 1, 0)]
    )


def norm(name: str, ours: str) -> Iterator[Entry]:
    """A LayerNorm or a group norm."""
    yield same(f"{name}/scale", f"{ours}.weight")
    yield same(f"{name}/bias", f"{ours}.bias")


def projections(name: str, ours: str, parts: tuple[str, ...], heads: int) -> Iterator[Entry]:
    """Query, key and value, or some of them, that are rows of one layer of ours."""
    kernels, biases = tuple(f"{name}/{part}/kernel" for part in parts), tuple(f"{name}/{part}/bias" for part in parts)
    yield Entry(
        f"{ours}.weight",
        kernels,
        lambda arrays: torch.cat([a.flatten(1).T for a in arrays]),
        lambda t: [part.T.unflatten(1, (heads, -1)) for part in t.chunk(len(parts))],
    )
    yield Entry(
        f"{ours}.bias",
        biases,
        lambda arrays: torch.cat([a.flatten() for a in arrays]),
        lambda t: [part.unflatten(0, (heads, -1)) for part in t.chunk(len(parts))],
    )


def output(name: str, ours: str, heads: int) -> Iterator[Entry]:
    """The heads back to D: a kernel (heads, D_h, D)."""
    yield Entry(
        f"{ours}.weight",
        (f"{name}/out/kernel",),
        lambda a: a[0].flatten(0, 1).T,
        lambda t: [t.T.unflatten(0, (heads, -1))],
    )
    yield same(f"{name}/out/bias", f"{ours}.bias")


def mlp(name: str, ours: str) -> Iterator[Entry]:
    """Two dense layers."""
    yield from dense(f"{name}/Dense_0", f"{ours}.fc1")
    yield from dense(f"{name}/Dense_1", f"{ours}.fc2")


def entries(config: vit.Config, newer: bool) -> Iterator[Entry]:
    """Every tensor of a model, with Google's names for it."""
    heads = config.heads
    if config.stem:
        yield from _stem(config.stem, "patch_embed.backbone.")
    yield conv("embedding", "patch_embed.proj")
    yield same("embedding/bias", "patch_embed.proj.bias")
    if config.class_token:
        yield same("cls", "cls_token")
    if config.positions == "learned":
        yield same("pos_embedding" if newer else "Transformer/posembed_input/pos_embedding", "pos_embed")
    first, attention, second, hidden = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    if not newer:
        attention, second, hidden = "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"
    for i in range(config.depth):
        block, ours = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        yield from norm(f"{block}/{first}", f"{ours}.norm1")
        yield from projections(f"{block}/{attention}", f"{ours}.attn.qkv", QKV, heads)
        yield from output(f"{block}/{attention}", f"{ours}.attn.proj", heads)
        yield from norm(f"{block}/{second}", f"{ours}.norm2")
        yield from mlp(f"{block}/{hidden}", f"{ours}.mlp")
    yield from norm("Transformer/encoder_norm", "norm")
    if config.pool == "map":
        probe = "MAPHead_0/MultiHeadDotProductAttention_0"
        yield same("MAPHead_0/probe", "attn_pool.latent")
        yield from projections(probe, "attn_pool.q", QKV[:1], heads)
        yield from projections(probe, "attn_pool.kv", QKV[1:], heads)
        yield from output(probe, "attn_pool.proj", heads)
        yield from norm("MAPHead_0/LayerNorm_0", "attn_pool.norm")
        yield from mlp("MAPHead_0/MlpBlock_0", "attn_pool.mlp")
    if config.representation:
        yield from dense("pre_logits", "pre_logits.fc")
    if config.classes:
        yield from dense("head", "head")


def _stem(config: resnet.Config, ours: str) -> Iterator[Entry]:
    yield conv("conv_root", f"{ours}stem.conv")
    yield from norm("gn_root", f"{ours}stem.norm")
    for s, depth in enumerate(config.blocks):
        for b in range(depth):
            unit, block = f"block{s + 1}/unit{b + 1}", f"{ours}stages.{s}.blocks.{b}"
            for n in (1, 2, 3):
                yield conv(f"{unit}/conv{n}", f"{block}.conv{n}")
                yield from norm(f"{unit}/gn{n}", f"{block}.norm{n}")
            if b == 0:
                yield conv(f"{unit}/conv_proj", f"{block}.downsample.conv")
                yield from norm(f"{unit}/gn_proj", f"{block}.downsample.norm")

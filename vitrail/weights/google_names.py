"""Google's names for the tensors of a ViT, and how its arrays lie: the table of google.py, both directions."""

from collections.abc import Iterator, Sequence

import torch

from vitrail.models import vit
from vitrail.models.config import ResNetFields
from vitrail.weights.mapping import Entry, same

# What the newer dialect and the older call the parts of a block.
NEWER = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
OLDER = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")


def dense(names: Sequence[str], ours: str, split: tuple[int, ...] = (-1,)) -> Iterator[Entry]:
    """Layers y = x K + b that are rows of one of ours: K (inputs, *split), b (split), such as (heads, D_h)."""
    yield Entry(
        f"{ours}.weight",
        tuple(f"{name}/kernel" for name in names),
        lambda kernels: torch.cat([kernel.flatten(1).T for kernel in kernels]),
        lambda weight: [part.T.unflatten(1, split) for part in weight.chunk(len(names))],
    )
    yield Entry(
        f"{ours}.bias",
        tuple(f"{name}/bias" for name in names),
        lambda biases: torch.cat([bias.flatten() for bias in biases]),
        lambda bias: [part.unflatten(0, split) for part in bias.chunk(len(names))],
    )


def output(name: str, ours: str, split: tuple[int, int]) -> Iterator[Entry]:
    """The heads back to D: a kernel (heads, D_h, D)."""
    kernel = (f"{name}/kernel",)
    yield Entry(f"{ours}.weight", kernel, lambda a: a[0].flatten(0, 1).T, lambda t: [t.T.unflatten(0, split)])
    yield same(f"{name}/bias", f"{ours}.bias")


def conv(name: str, ours: str) -> Entry:
    """A convolution's kernel (H, W, inputs, outputs)."""
    kernel = (f"{name}/kernel",)
    return Entry(f"{ours}.weight", kernel, lambda a: a[0].permute(3, 2, 0, 1), lambda t: [t.permute(2, 3, 1, 0)])


def norm(name: str, ours: str) -> Iterator[Entry]:
    """A LayerNorm or a group norm."""
    yield same(f"{name}/scale", f"{ours}.weight")
    yield same(f"{name}/bias", f"{ours}.bias")


def mlp(name: str, ours: str) -> Iterator[Entry]:
    """Two dense layers."""
    yield from dense([f"{name}/Dense_0"], f"{ours}.fc1")
    yield from dense([f"{name}/Dense_1"], f"{ours}.fc2")


def entries(config: vit.Config, newer: bool) -> Iterator[Entry]:
    """Every tensor of a model, with Google's names for it."""
    heads = (config.heads, -1)
    if config.stem:
        yield from _stem(config.stem, "patch_embed.backbone.")
    yield conv("embedding", "patch_embed.proj")
    yield same("embedding/bias", "patch_embed.proj.bias")
    if config.class_token:
        yield same("cls", "cls_token")
    if config.positions == "learned":
        yield same("pos_embedding" if newer else "Transformer/posembed_input/pos_embedding", "pos_embed")
    first, attention, second, hidden = NEWER if newer else OLDER
    for i in range(config.depth):
        block, ours = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        yield from norm(f"{block}/{first}", f"{ours}.norm1")
        qkv = [f"{block}/{attention}/{part}" for part in ("query", "key", "value")]
        yield from dense(qkv, f"{ours}.attn.qkv", heads)
        yield from output(f"{block}/{attention}/out", f"{ours}.attn.proj", heads)
        yield from norm(f"{block}/{second}", f"{ours}.norm2")
        yield from mlp(f"{block}/{hidden}", f"{ours}.mlp")
    yield from norm("Transformer/encoder_norm", "norm")
    if config.pool == "map":
        probe = "MAPHead_0/MultiHeadDotProductAttention_0"
        yield same("MAPHead_0/probe", "attn_pool.latent")
        yield from dense([f"{probe}/query"], "attn_pool.q", heads)
        yield from dense([f"{probe}/key", f"{probe}/value"], "attn_pool.kv", heads)
        yield from output(f"{probe}/out", "attn_pool.proj", heads)
        yield from norm("MAPHead_0/LayerNorm_0", "attn_pool.norm")
        yield from mlp("MAPHead_0/MlpBlock_0", "attn_pool.mlp")
    if config.representation:
        yield from dense(["pre_logits"], "pre_logits.fc")
    if config.classes:
        yield from dense(["head"], "head")


def _stem(config: ResNetFields, ours: str) -> Iterator[Entry]:
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

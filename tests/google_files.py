"""Files as Google's code writes them, made without ours, and their numbers under the names of tests/reference.py."""

import numpy as np

WIDTH, HEADS, MLP, PATCH = 32, 4, 48, 8
BLOCK, SA = "Transformer/encoderblock_", "MultiHeadDotProductAttention_"


def table(
    newer=False, depth=2, grid=4, token=True, pool="token", classes=5, representation=None, stem=None, positions=True
):
    """(kind, Google's name, ours, inputs, outputs) of every layer; names and shapes as in vit_jax and big_vision.

    stem: bottlenecks a stage, for a hybrid with 1 x 1 patches (8 x 8 for the one without stages).
    """

    def attention(name, q, kv, out):
        for leaf, ours in (("query", q), ("key", kv), ("value", kv)):
            yield "projection", f"{name}/{leaf}", ours, WIDTH, WIDTH
        yield "out", f"{name}/out", out, WIDTH, WIDTH

    def mlp(name, ours):
        yield "dense", f"{name}/Dense_0", f"{ours}.fc1", WIDTH, MLP
        yield "dense", f"{name}/Dense_1", f"{ours}.fc2", MLP, WIDTH

    inputs, patch, backbone = 3, PATCH, "patch_embed.backbone."
    if stem is not None:
        yield "conv7", "conv_root", f"{backbone}stem.conv", 3, 64
        yield "norm", "gn_root", f"{backbone}stem.norm", 64, 64
        inputs, patch = 64, 1 if stem else PATCH
        for s, units in enumerate(stem):
            outputs = 256 * 2**s
            for u in range(units):
                unit, ours, middle = f"block{s + 1}/unit{u + 1}", f"{backbone}stages.{s}.blocks.{u}", outputs // 4
                for n, k, i, o in ((1, 1, inputs, middle), (2, 3, middle, middle), (3, 1, middle, outputs)):
                    yield f"conv{k}", f"{unit}/conv{n}", f"{ours}.conv{n}", i, o
                    yield "norm", f"{unit}/gn{n}", f"{ours}.norm{n}", o, o
                if u == 0:
                    yield "conv1", f"{unit}/conv_proj", f"{ours}.downsample.conv", inputs, outputs
                    yield "norm", f"{unit}/gn_proj", f"{ours}.downsample.norm", outputs, outputs
                inputs = outputs
    yield f"conv{patch}", "embedding", "patch_embed.proj", inputs, WIDTH
    yield "vector", "embedding/bias", "patch_embed.proj.bias", (WIDTH,), None
    if token:
        yield "vector", "cls", "cls_token", (1, 1, WIDTH), None
    if positions:
        rows = grid * grid + (token and not newer)
        name = "pos_embedding" if newer else "Transformer/posembed_input/pos_embedding"
        yield "vector", name, "pos_embed", (1, rows, WIDTH), None
    own, second, hidden = (0, 1, 0) if newer else (1, 2, 3)
    for i in range(depth):
        theirs, ours = f"{BLOCK}{i}", f"blocks.{i}"
        yield "norm", f"{theirs}/LayerNorm_0", f"{ours}.norm1", WIDTH, WIDTH
        yield from attention(f"{theirs}/{SA}{own}", f"{ours}.attn.qkv", f"{ours}.attn.qkv", f"{ours}.attn.proj")
        yield "norm", f"{theirs}/LayerNorm_{second}", f"{ours}.norm2", WIDTH, WIDTH
        yield from mlp(f"{theirs}/MlpBlock_{hidden}", f"{ours}.mlp")
    yield "norm", "Transformer/encoder_norm", "norm", WIDTH, WIDTH
    if pool == "map":
        yield "vector", "MAPHead_0/probe", "attn_pool.latent", (1, 1, WIDTH), None
        yield from attention(f"MAPHead_0/{SA}0", "attn_pool.q", "attn_pool.kv", "attn_pool.proj")
        yield "norm", "MAPHead_0/LayerNorm_0", "attn_pool.norm", WIDTH, WIDTH
        yield from mlp("MAPHead_0/MlpBlock_0", "attn_pool.mlp")
    if representation:
        yield "dense", "pre_logits", "pre_logits.fc", WIDTH, representation
    if classes:
        yield "dense", "head", "head", representation or WIDTH, classes


def arrays(**how):
    """name -> float32 array, at generic values of order 1."""
    rng, found = np.random.default_rng(0), {}

    def draw(name, shape, fan=25, mean=0.0):
        found[name] = (mean + rng.normal(size=shape) / np.sqrt(fan)).astype(np.float32)

    for kind, name, _, inputs, outputs in table(**how):
        if kind == "vector":
            draw(name, inputs)
        elif kind == "norm":
            draw(f"{name}/scale", outputs, mean=1.0)
            draw(f"{name}/bias", outputs)
        elif kind[:4] == "conv":
            side = int(kind[4:])
            draw(f"{name}/kernel", (side, side, inputs, outputs), side * side * inputs)
        else:
            split, joined = (HEADS, WIDTH // HEADS), outputs
            shapes = {"projection": ((inputs, *split), split), "out": ((*split, outputs), outputs)}
            kernel, bias = shapes.get(kind, ((inputs, outputs), joined))
            draw(f"{name}/kernel", kernel, inputs)
            draw(f"{name}/bias", bias)
    return found


def reference_weights(found, **how):
    """The same numbers in float64 under timm's names, linear layers as (outputs, inputs), convolutions (O, I, H, W)."""
    g, w = {name: array.astype(np.float64) for name, array in found.items()}, {}
    for kind, theirs, ours, inputs, outputs in table(**how):
        if kind == "vector":
            w[ours] = g[theirs]
        elif kind == "norm":
            w[f"{ours}.weight"], w[f"{ours}.bias"] = g[f"{theirs}/scale"], g[f"{theirs}/bias"]
        elif kind[:4] == "conv":
            w[f"{ours}.weight"] = np.transpose(g[f"{theirs}/kernel"], (3, 2, 0, 1))
        else:  # query, key and value lie below one another
            matrix, bias = g[f"{theirs}/kernel"].reshape(inputs, outputs).T, g[f"{theirs}/bias"].reshape(outputs)
            above = w.get(f"{ours}.weight", matrix[:0]), w.get(f"{ours}.bias", bias[:0])
            w[f"{ours}.weight"], w[f"{ours}.bias"] = np.concatenate([above[0], matrix]), np.append(above[1], bias)
    return w


def prefixed(found, prefix):
    return {prefix + name: array for name, array in found.items()}


def stacked(found):
    """As flax's scan writes them: one array for all blocks."""
    result = {name: array for name, array in found.items() if not name.startswith(BLOCK)}
    for inside in (name.removeprefix(f"{BLOCK}0") for name in found if name.startswith(f"{BLOCK}0")):
        blocks = [array for name, array in found.items() if name.startswith(BLOCK) and name.endswith(inside)]
        result[BLOCK[:-1] + inside] = np.stack(blocks)
    return result


def half(found):
    """As bfloat16, stored as two raw bytes: the upper half of a float32."""
    return {name: (array.view(np.uint32) >> 16).astype(np.uint16).view("V2") for name, array in found.items()}


def from_half(found):
    """What those bytes mean."""
    return {name: (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32) for name, array in found.items()}

"""Files as Google's code writes them, made without ours, and their numbers under the names of tests/reference.py."""

import numpy as np

WIDTH, HEADS, MLP, PATCH = 32, 4, 48, 8


def arrays(
    newer=False,
    depth=2,
    grid=4,
    token=True,
    pool="token",
    classes=5,
    representation=None,
    stem=None,
    table=True,
    seed=0,
):
    """name -> float32 array, at generic values of order 1; names and shapes as in vit_jax and big_vision.

    stem: bottlenecks a stage, for a hybrid with 1 x 1 patches (8 x 8 for the one without stages).
    """
    rng = np.random.default_rng(seed)
    found = {}

    def kernel(name, *shape, fan):
        found[name] = rng.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(fan))

    def vector(name, *shape, mean=0.0):
        found[name] = (mean + 0.2 * rng.normal(size=shape)).astype(np.float32)

    def norm(name, width=WIDTH):
        vector(f"{name}/scale", width, mean=1.0)
        vector(f"{name}/bias", width)

    def dense(name, inputs, outputs):
        kernel(f"{name}/kernel", inputs, outputs, fan=inputs)
        vector(f"{name}/bias", outputs)

    def attention(name):
        for part in ("query", "key", "value"):
            kernel(f"{name}/{part}/kernel", WIDTH, HEADS, WIDTH // HEADS, fan=WIDTH)
            vector(f"{name}/{part}/bias", HEADS, WIDTH // HEADS)
        kernel(f"{name}/out/kernel", HEADS, WIDTH // HEADS, WIDTH, fan=WIDTH)
        vector(f"{name}/out/bias", WIDTH)

    def mlp(name):
        dense(f"{name}/Dense_0", WIDTH, MLP)
        dense(f"{name}/Dense_1", MLP, WIDTH)

    inputs, patch = 3, PATCH
    if stem is not None:
        kernel("conv_root/kernel", 7, 7, 3, 64, fan=147)
        norm("gn_root", 64)
        inputs, patch = 64, 1 if stem else PATCH
        for s, units in enumerate(stem):
            outputs = 256 * 2**s
            for u in range(units):
                unit, middle = f"block{s + 1}/unit{u + 1}", outputs // 4
                shapes = {1: (1, inputs, middle), 2: (3, middle, middle), 3: (1, middle, outputs)}
                for n, (k, i, o) in shapes.items():
                    kernel(f"{unit}/conv{n}/kernel", k, k, i, o, fan=k * k * i)
                    norm(f"{unit}/gn{n}", o)
                if u == 0:
                    kernel(f"{unit}/conv_proj/kernel", 1, 1, inputs, outputs, fan=inputs)
                    norm(f"{unit}/gn_proj", outputs)
                inputs = outputs
    kernel("embedding/kernel", patch, patch, inputs, WIDTH, fan=patch * patch * inputs)
    vector("embedding/bias", WIDTH)
    if token:
        vector("cls", 1, 1, WIDTH)
    if table:
        rows = grid * grid + (token and not newer)
        vector("pos_embedding" if newer else "Transformer/posembed_input/pos_embedding", 1, rows, WIDTH)
    parts = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    if not newer:
        parts = ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        norm(f"{block}/LayerNorm_0")
        attention(f"{block}/{parts[0]}")
        norm(f"{block}/{parts[1]}")
        mlp(f"{block}/{parts[2]}")
    norm("Transformer/encoder_norm")
    if pool == "map":
        vector("MAPHead_0/probe", 1, 1, WIDTH)
        attention("MAPHead_0/MultiHeadDotProductAttention_0")
        norm("MAPHead_0/LayerNorm_0")
        mlp("MAPHead_0/MlpBlock_0")
    if representation:
        dense("pre_logits", WIDTH, representation)
    if classes:
        dense("head", representation or WIDTH, classes)
    return found


def reference_weights(found):
    """The same numbers in float64 under timm's names, linear layers as (outputs, inputs), convolutions (O, I, H, W)."""
    g = {name: array.astype(np.float64) for name, array in found.items()}
    w = {}

    def norm(theirs, ours):
        w[f"{ours}.weight"], w[f"{ours}.bias"] = g[f"{theirs}/scale"], g[f"{theirs}/bias"]

    def dense(theirs, ours):
        w[f"{ours}.weight"], w[f"{ours}.bias"] = g[f"{theirs}/kernel"].T, g[f"{theirs}/bias"]

    def projection(theirs, ours, *parts):
        w[f"{ours}.weight"] = np.concatenate([g[f"{theirs}/{p}/kernel"].reshape(WIDTH, WIDTH).T for p in parts])
        w[f"{ours}.bias"] = np.concatenate([g[f"{theirs}/{p}/bias"].reshape(WIDTH) for p in parts])

    def out(theirs, ours):
        w[f"{ours}.weight"] = g[f"{theirs}/out/kernel"].reshape(WIDTH, WIDTH).T
        w[f"{ours}.bias"] = g[f"{theirs}/out/bias"]

    def conv(theirs, ours):
        w[f"{ours}.weight"] = np.transpose(g[f"{theirs}/kernel"], (3, 2, 0, 1))

    def mlp(theirs, ours):
        dense(f"{theirs}/Dense_0", f"{ours}.fc1")
        dense(f"{theirs}/Dense_1", f"{ours}.fc2")

    stem = "patch_embed.backbone."
    for name in g:
        theirs, _, leaf = name.rpartition("/")
        if theirs == "conv_root":
            conv(theirs, f"{stem}stem.conv")
        elif theirs == "gn_root" and leaf == "scale":
            norm(theirs, f"{stem}stem.norm")
        elif theirs.startswith("block"):
            stage, unit, part = theirs.split("/")
            ours = f"{stem}stages.{int(stage[5:]) - 1}.blocks.{int(unit[4:]) - 1}"
            if part.startswith("conv"):
                conv(theirs, f"{ours}.downsample.conv" if part == "conv_proj" else f"{ours}.{part}")
            elif leaf == "scale":
                norm(theirs, f"{ours}.downsample.norm" if part == "gn_proj" else f"{ours}.norm{part[2:]}")
    conv("embedding", "patch_embed.proj")
    w["patch_embed.proj.bias"] = g["embedding/bias"]
    if "cls" in g:
        w["cls_token"] = g["cls"]
    for name in ("pos_embedding", "Transformer/posembed_input/pos_embedding"):
        if name in g:
            w["pos_embed"] = g[name]
    older = any("MultiHeadDotProductAttention_1" in name for name in g)
    attention, second, hidden = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    if older:
        attention, second, hidden = ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
    depth = len({name.split("/")[1] for name in g if name.startswith("Transformer/encoderblock_")})
    for i in range(depth):
        theirs, ours = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        norm(f"{theirs}/LayerNorm_0", f"{ours}.norm1")
        projection(f"{theirs}/{attention}", f"{ours}.attn.qkv", "query", "key", "value")
        out(f"{theirs}/{attention}", f"{ours}.attn.proj")
        norm(f"{theirs}/{second}", f"{ours}.norm2")
        mlp(f"{theirs}/{hidden}", f"{ours}.mlp")
    norm("Transformer/encoder_norm", "norm")
    if "MAPHead_0/probe" in g:
        theirs = "MAPHead_0/MultiHeadDotProductAttention_0"
        w["attn_pool.latent"] = g["MAPHead_0/probe"]
        projection(theirs, "attn_pool.q", "query")
        projection(theirs, "attn_pool.kv", "key", "value")
        out(theirs, "attn_pool.proj")
        norm("MAPHead_0/LayerNorm_0", "attn_pool.norm")
        mlp("MAPHead_0/MlpBlock_0", "attn_pool.mlp")
    if "pre_logits/kernel" in g:
        dense("pre_logits", "pre_logits.fc")
    if "head/kernel" in g:
        dense("head", "head")
    return w


def prefixed(found, prefix):
    return {prefix + name: array for name, array in found.items()}


def stacked(found):
    """As flax's scan writes them: one array for all blocks."""
    depth = len({name.split("/")[1] for name in found if name.startswith("Transformer/encoderblock_")})
    result = {name: array for name, array in found.items() if not name.startswith("Transformer/encoderblock_")}
    first = "Transformer/encoderblock_0/"
    for name in (name for name in found if name.startswith(first)):
        inside = name.removeprefix(first)
        blocks = [found[f"Transformer/encoderblock_{i}/{inside}"] for i in range(depth)]
        result[f"Transformer/encoderblock/{inside}"] = np.stack(blocks)
    return result


def half(found):
    """As bfloat16, stored as two raw bytes: the upper half of a float32."""
    return {name: (array.view(np.uint32) >> 16).astype(np.uint16).view("V2") for name, array in found.items()}


def from_half(found):
    """What those bytes mean."""
    return {name: (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32) for name, array in found.items()}

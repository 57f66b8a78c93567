"""The forward pass once more, in plain numpy float64, from the papers' equations: what the models are held against.

    logits = forward(weights(model), model.config, images.numpy())

Slow and literal on purpose: a loop over patches, one over heads, one over the cells of a convolution's kernel.
"""

import numpy as np
import torch
from scipy.special import erf

from vitrail.models import resnet


def perturb(model, seed=0, dtype=torch.float64):
    """Move every parameter to a generic place (nothing stays 0 or 1), at scales that keep activations of order 1."""
    generator = torch.Generator().manual_seed(seed)
    model.to(dtype).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if p.ndim >= 2 and name.endswith("weight"):
                noise = noise / p[0].numel() ** 0.5
            elif "norm" in name and name.endswith("weight"):
                noise = 1 + 0.2 * noise
            elif name.endswith("gamma"):
                noise = 0.5 + 0.2 * noise
            else:
                noise = 0.3 * noise
            p.copy_(noise)
    return model


def weights(model):
    """The model's parameters as float64 arrays, by name."""
    return {name: p.detach().double().numpy() for name, p in model.state_dict().items()}


def dense(x, w, name):
    y = np.einsum("...i,oi->...o", x, w[f"{name}.weight"])
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(x, w, name, eps):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def softmax(scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(q, k, v, heads, norm=lambda x, which: x):
    """SA of appendix A for each head, the heads side by side: q (B, M, D), k and v (B, N, D)."""
    width = q.shape[-1] // heads
    outputs = []
    for h in range(heads):
        q_h, k_h, v_h = (x[..., h * width : (h + 1) * width] for x in (q, k, v))
        q_h, k_h = norm(q_h, "q"), norm(k_h, "k")
        A = softmax(q_h @ k_h.transpose(0, 2, 1) / np.sqrt(width))
        outputs.append(A @ v_h)
    return np.concatenate(outputs, axis=-1)


def mlp(z, w, name, activation):
    hidden = dense(z, w, f"{name}.fc1")
    if activation == "swiglu":
        a, b = np.split(hidden, 2, axis=-1)
        hidden = a / (1 + np.exp(-a)) * b
    elif activation == "gelu":
        hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
    elif activation == "gelu_tanh":
        hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    else:
        hidden = hidden / (1 + np.exp(-1.702 * hidden))
    return dense(hidden, w, f"{name}.fc2")


def block(z, w, name, config):
    def norm(x, which):
        return layer_norm(x, w, f"{name}.attn.{which}_norm", config.norm_eps) if config.qk_norm else x

    qkv = dense(layer_norm(z, w, f"{name}.norm1", config.norm_eps), w, f"{name}.attn.qkv")
    msa = dense(attention(*np.split(qkv, 3, axis=-1), config.heads, norm), w, f"{name}.attn.proj")
    z = z + msa * w.get(f"{name}.ls1.gamma", 1.0)
    y = mlp(layer_norm(z, w, f"{name}.norm2", config.norm_eps), w, f"{name}.mlp", config.activation)
    return z + y * w.get(f"{name}.ls2.gamma", 1.0)


def sincos(rows, columns, width, last_included):
    """For the patch at row y, column x: [sin(x w_k), cos(x w_k), sin(y w_k), cos(y w_k)], k = 0 .. width / 4 - 1."""
    count = width // 4
    table = np.zeros((rows * columns, width))
    for y in range(rows):
        for x in range(columns):
            for k in range(count):
                omega = 1 / 10000 ** (k / (count - 1 if last_included else count))
                values = np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)
                table[y * columns + x, k::count] = values
    return table


def same(size, kernel, stride):
    """TensorFlow's SAME: (outputs, padding before, padding after)."""
    outputs = -(-size // stride)
    padding = max((outputs - 1) * stride + kernel - size, 0)
    return outputs, padding // 2, padding - padding // 2


def windows(x, kernel, stride, value):
    """For each cell (i, j) of the kernel, the pixels that it meets: an array (B, C, rows, columns)."""
    rows, top, bottom = same(x.shape[2], kernel, stride)
    columns, left, right = same(x.shape[3], kernel, stride)
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)
    for i in range(kernel):
        for j in range(kernel):
            yield i, j, x[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride][..., :rows, :columns]


def convolve(x, w, name, stride=1):
    kernel = w[f"{name}.weight"]
    mean, std = kernel.mean(axis=(1, 2, 3), keepdims=True), kernel.std(axis=(1, 2, 3), keepdims=True)
    kernel = (kernel - mean) / (std + 1e-5)
    cells = windows(x, kernel.shape[2], stride, 0.0)
    return sum(np.einsum("bchw,oc->bohw", pixels, kernel[:, :, i, j]) for i, j, pixels in cells)


def group_norm(x, w, name):
    B, C, H, W = x.shape
    groups = x.reshape(B, 32, -1)
    mean, variance = groups.mean(axis=-1, keepdims=True), groups.var(axis=-1, keepdims=True)
    x = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(B, C, H, W)
    return x * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def relu(x):
    return np.maximum(x, 0)


def feature_map(x, w, blocks, name=""):
    """The BiT ResNet: root, then bottlenecks whose first in every stage but the first halves the size."""
    x = relu(group_norm(convolve(x, w, f"{name}stem.conv", 2), w, f"{name}stem.norm"))
    x = np.max([pixels for _, _, pixels in windows(x, 3, 2, -np.inf)], axis=0)
    for s, depth in enumerate(blocks):
        for b in range(depth):
            unit, stride = f"{name}stages.{s}.blocks.{b}", 2 if s > 0 and b == 0 else 1
            y = relu(group_norm(convolve(x, w, f"{unit}.conv1"), w, f"{unit}.norm1"))
            y = relu(group_norm(convolve(y, w, f"{unit}.conv2", stride), w, f"{unit}.norm2"))
            y = group_norm(convolve(y, w, f"{unit}.conv3"), w, f"{unit}.norm3")
            if b == 0:
                x = group_norm(convolve(x, w, f"{unit}.downsample.conv", stride), w, f"{unit}.downsample.norm")
            x = relu(x + y)
    return x


def embed(images, w, config):
    """Equation 1: z_0."""
    if config.stem:
        images = feature_map(images, w, config.stem.blocks, "patch_embed.backbone.")
    B, _, H, W = images.shape
    h, v = config.patch_size
    E = w["patch_embed.proj.weight"].reshape(config.width, -1)
    patches = []
    for top in range(0, H, h):
        for left in range(0, W, v):
            patches.append(images[:, :, top : top + h, left : left + v].reshape(B, -1) @ E.T)
    x = np.stack(patches, axis=1) + w.get("patch_embed.proj.bias", 0.0)
    if config.positions == "learned":
        table = w["pos_embed"][0]
    elif config.positions == "none":
        table = np.zeros((len(patches), config.width))
    else:
        table = sincos(H // h, W // v, config.width, config.positions == "sincos")
    x = x + table[-len(patches) :]
    first = []
    if config.class_token:
        position = table[0] if len(table) > len(patches) else 0.0
        first.append(np.repeat(w["cls_token"] + position, B, axis=0))
    if config.registers:
        first.append(np.repeat(w["reg_token"], B, axis=0))
    z = np.concatenate([*first, x], axis=1)
    return layer_norm(z, w, "norm_pre", config.norm_eps) if config.pre_norm else z


def pool(z, w, config):
    """Equation 4: y, or what came after the paper in its place."""
    if config.pool == "token":
        return z[:, 0]
    if config.pool == "avg":
        return z[:, config.prefix :].mean(axis=1)
    q = np.repeat(dense(w["attn_pool.latent"], w, "attn_pool.q"), len(z), axis=0)
    k, v = np.split(dense(z, w, "attn_pool.kv"), 2, axis=-1)
    y = dense(attention(q, k, v, config.heads), w, "attn_pool.proj")
    return (y + mlp(layer_norm(y, w, "attn_pool.norm", config.norm_eps), w, "attn_pool.mlp", config.activation))[:, 0]


def forward(w, config, images):
    """Logits of a ViT, a hybrid or a ResNet, for images of the size that the configuration names."""
    images = images.astype(np.float64)
    if isinstance(config, resnet.Config):
        return dense(feature_map(images, w, config.blocks).mean(axis=(2, 3)), w, "head")
    z = embed(images, w, config)
    for i in range(config.depth):
        z = block(z, w, f"blocks.{i}", config)
    if config.norm_first:
        z = layer_norm(z, w, "norm", config.norm_eps)
    y = pool(z, w, config)
    if not config.norm_first:
        y = layer_norm(y, w, "fc_norm", config.norm_eps)
    if config.representation:
        y = np.tanh(dense(y, w, "pre_logits.fc"))
    return dense(y, w, "head")

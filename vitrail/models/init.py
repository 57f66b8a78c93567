"""The initial value of every parameter of the ViT and the ResNet, in one table: as in Google's code.

The first pattern that a parameter's name matches decides; a parameter that none matches is an error, so that nothing
keeps a framework's default unnoticed. q, k and v each get their own fans (one fused kernel would have the wrong one).

Each value is a function of (seed, the parameter's name), computed on the CPU in float32: neither the order in which
modules are built nor the device or the number of processes changes it.

    initialise(model, layer_scale=1e-5, seed=0)
"""

import math
import re
from collections.abc import Callable
from functools import partial
from hashlib import blake2b

import torch
from torch import Generator, Tensor, nn

Fill = Callable[..., object]  # of a tensor, generator=...

CUT = 0.87962566103423978  # standard deviation of a unit normal that is cut at +-2, as in jax.nn.initializers


def constant(value: float) -> Fill:
    """Every element `value`."""
    return lambda weight, generator: nn.init.constant_(weight, value)


def lecun_normal(weight: Tensor, generator: Generator | None) -> None:
    """A normal of variance 1 / fan_in, cut at two of its standard deviations (flax's `lecun_normal`). By the inverse of
    its distribution: torch's own trunc_normal_ draws other numbers since 2.14."""
    within = math.erf(math.sqrt(2))  # the probability of less than two standard deviations
    weight.uniform_(-within, within, generator=generator).erfinv_()
    weight.mul_(math.sqrt(2 / weight[0].numel()) / CUT)


def xavier_uniform(parts: int = 1) -> Fill:
    """Uniform within sqrt(6 / (fan_in + fan_out)), each of the `parts` that are stacked in the rows by itself."""

    def fill(weight: Tensor, generator: Generator | None) -> None:
        for part in weight.view(-1, weight.shape[-1]).chunk(parts):
            nn.init.xavier_uniform_(part, generator=generator)

    return fill


def table(layer_scale: float | None, gated: bool) -> list[tuple[str, Fill]]:
    """(pattern, initial value), first match first. gated: the MLP's first layer holds two kernels (SwiGLU)."""
    zero, one = constant(0.0), constant(1.0)
    return [
        (r"^cls_token$|\b(relative_position_bias_table|[qv]_bias)$", zero),
        (r"^(pos_embed|reg_token|mask_token)$", partial(nn.init.normal_, std=0.02)),
        (r"\b(enter|between|leave)\.weight$", xavier_uniform()),  # of what pre-training has besides the model
        (r"\bls[12]\.gamma$", constant(layer_scale or 0.0)),
        # The last scale of a bottleneck: it starts as the identity.
        (r"\bnorm3\.weight$", zero),
        (r"norm\w*\.weight$", one),
        (r"norm\w*\.bias$", zero),
        (r"^head\.(weight|bias)$", zero),
        (r"\battn\.qkv\.weight$", xavier_uniform(3)),
        (r"^attn_pool\.kv\.weight$", xavier_uniform(2)),
        (r"\bmlp\.fc1\.weight$", xavier_uniform(2 if gated else 1)),
        (r"^attn_pool\.latent$|\b(attn\.proj|attn_pool\.(q|proj)|mlp\.fc2)\.weight$", xavier_uniform()),
        (r"\bmlp\.fc[12]\.bias$", partial(nn.init.normal_, std=1e-6)),
        (r"\b(patch_embed\.proj|conv\d?|pre_logits\.fc)\.weight$", lecun_normal),
        (r"\b(qkv|q|kv|proj|fc|enter|between|leave)\.bias$", zero),
    ]


@torch.no_grad()
def initialise(
    model: nn.Module,
    layer_scale: float | None = None,
    gated: bool = False,
    seed: int | None = None,
    only: set[str] | None = None,
) -> None:
    """Set every parameter of `model`, or those named in `only`, in place. seed: None lets torch's generator draw."""
    rules = table(layer_scale, gated)
    for name, parameter in model.named_parameters():
        fill = next((fill for pattern, fill in rules if re.search(pattern, name)), None)
        assert fill is not None, f"no initial value is written for {name}"
        if only is None or name in only:
            value, generator = torch.empty(parameter.shape), None
            if seed is not None:
                key = blake2b(name.encode(), digest_size=8, key=(seed % 2**64).to_bytes(8)).digest()
                generator = Generator().manual_seed(int.from_bytes(key))
            fill(value, generator=generator)
            parameter.copy_(value)

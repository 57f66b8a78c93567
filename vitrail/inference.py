"""The model as predict and evaluate compute it: the same numbers with less memory traffic, or int8 where asked for.

    fast = prepared(model)                  # bit for bit what `model.eval()` says, without gradients
    fast = prepared(task, "int8")           # the blocks' linear layers in 8 bits: faster on a CPU, a little less exact
    for part in images.split(batch_size(model.config, (224, 224), device)): ...

Without gradients nobody needs the inputs of GELU, LayerScale and the residual sums again, so a block may compute them
in place: their results stay in the processor's cache, and a block holds a third less.

int8 is dynamic: each row of a weight has its scale, and the activations get theirs from the image at hand, so that an
answer never depends on the images beside it. Residual sums, LayerNorm, softmax, GELU, patches and head stay in float:
a ViT that is quantised as a whole loses its accuracy.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models import resnet, vit
from vitrail.models.layers import LayerScale, activate
from vitrail.parallel import CheckpointedBlock

Linear = Literal["plain", "packed", "int8"]
M = TypeVar("M", bound=nn.Module)

# Tokens that go through the model together: 16 images of 224 pixels on a CPU. Fewer are no slower there on an idle
# machine, but on a busy one each operation waits for the slowest core; more only need more memory.
TOKENS = {"cpu": 3_200, "cuda": 50_000}


class InferenceBlock(vit.Block):
    """A transformer block that overwrites what nobody reads again. With gradients it is the block that it was."""

    def forward(self, z: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        if torch.is_grad_enabled() or torch.is_autocast_enabled(z.device.type):
            return super().forward(z)
        attn, mlp = self.attn, self.mlp
        q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in attn.qkv(self.norm1(z)).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v)
        z = _scaled(self.ls1, attn.proj(y.transpose(1, 2).flatten(2))).add_(z)
        hidden = _activated(mlp.fc1(self.norm2(z)), mlp)
        return _scaled(self.ls2, mlp.fc2(hidden)).add_(z)


class Int8Block(InferenceBlock):
    """One whose linear layers are Int8Linear: image by image, each with the ranges of its own activations."""

    def forward(self, z: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        forward = super().forward
        return forward(z) if len(z) == 1 else torch.cat([forward(image) for image in z.split(1)])


class PackedLinear(nn.Module):
    """x W^T + b with a copy of W in the layout that oneDNN wants. ValueError where this PyTorch has no such layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        with _named("packed"), torch.no_grad():
            if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
                raise RuntimeError("oneDNN is absent or switched off")
            self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch E"]:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class Int8Linear(nn.Module):
    """x W^T + b with W in 8 bits and a scale for each of its rows, x in 8 bits with one scale, the result in fp32.

    The weight is a copy, a quarter of the size. ValueError where this PyTorch cannot do it on this machine.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        # Symmetric, from -127 to 127. A row of zeros has no range of its own.
        scales = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny * 127).double() / 127
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        bias = None if linear.bias is None else linear.bias.detach()
        # Without VNNI the processor adds pairs of products in 16 bits; activations of 7 bits cannot overflow them.
        self.reduced = not torch.cpu._is_vnni_supported()
        with _named("int8"), warnings.catch_warnings():
            # The tensor's type is deprecated; what it is packed into is what counts here.
            warnings.simplefilter("ignore", UserWarning)
            quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(quantised, bias)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch E"]:
        return torch.ops.quantized.linear_dynamic(x, self.packed, self.reduced)


# How the blocks' linear layers are computed, and how far the result may be from the plain product, as a share of it.
LAYERS: dict[str, tuple[Callable[[nn.Linear], nn.Module], float]] = {
    "packed": (PackedLinear, 1e-5),
    "int8": (Int8Linear, 0.05),
}


def prepared(module: M, linear: Linear = "plain") -> M:
    """`module`, a model or a task, for inference: in evaluation mode, its blocks replaced by faster ones.

    The original is left as it is. The parameters are its own, so nothing is copied and nothing goes stale; only packed
    and int8 weights are copies, of the values that they have now. Blocks that this file does not know, and ResNets,
    stay as they are. Where anything in it is compiled, "plain" is the module itself, in the mode that it is in.

    ValueError for packed and int8 where the model has no transformer blocks, is not in fp32 on a CPU, or PyTorch has no
    such layers for this machine, or wrong ones.
    """
    if linear != "plain":
        _refuse(module, linear)
    elif any(part._compiled_call_impl is not None for part in module.modules()):
        return module
    return _twin(module, linear).eval()


def batch_size(
    config: vit.Config | resnet.Config, image_size: tuple[int, int], device: torch.device, linear: Linear = "plain"
) -> int:
    """How many images of (height, width) should go through the model together; at least 1.

    In int8 it is 1, for then an image's answer is a function of the image alone, to the last bit: a patch that differs
    by rounding, as it does in a batch of another size, may round to another of 256 steps.
    """
    if linear == "int8":
        return 1
    if isinstance(config, vit.Config):
        rows, columns = config.grid(image_size)
        tokens = config.prefix + rows * columns
    else:
        tokens = math.ceil(image_size[0] / 16) * math.ceil(image_size[1] / 16)
    return max(1, TOKENS.get(device.type, TOKENS["cuda"]) // tokens)


def _twin(module: M, linear: Linear) -> M:
    """A copy of the tree of modules around the same parameters and buffers."""
    twin: Any = copy.copy(module)
    twin._modules = {name: child and _twin(child, linear) for name, child in module._modules.items()}
    twin._compiled_call_impl = None  # which is bound to the original
    if type(twin) in (vit.Block, CheckpointedBlock):
        twin.__class__ = Int8Block if linear == "int8" else InferenceBlock
        if linear != "plain":
            make, _ = LAYERS[linear]
            for owner, name in ((twin.attn, "qkv"), (twin.attn, "proj"), (twin.mlp, "fc1"), (twin.mlp, "fc2")):
                setattr(owner, name, make(getattr(owner, name)))
    return twin


def _scaled(scale: nn.Module, y: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
    """LayerScale in place, where there is one."""
    return y.mul_(scale.gamma) if isinstance(scale, LayerScale) else y


def _activated(hidden: Float[Tensor, "B N H"], mlp: vit.MLP) -> Float[Tensor, "B N M"]:
    """The MLP's non-linearity, in place where it has one input."""
    if mlp.activation in ("gelu", "gelu_tanh"):
        return torch.ops.aten.gelu_(hidden, approximate="tanh" if mlp.activation == "gelu_tanh" else "none")
    return activate(hidden, mlp.activation)


def _refuse(module: nn.Module, linear: Linear) -> None:
    """ValueError where the blocks of `module` cannot have such layers, or this machine's are wrong."""
    blocks = [part for part in module.modules() if isinstance(part, vit.Block)]
    if not blocks:
        raise ValueError(f"the model has no transformer blocks, whose linear layers could be {linear}.")
    weight = blocks[0].attn.qkv.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        kind = str(weight.dtype).removeprefix("torch.")
        raise ValueError(f"the model is in {kind} on {weight.device}; {linear} layers need float32 on a CPU.")
    make, allowed = LAYERS[linear]
    generator, layer = torch.Generator().manual_seed(0), nn.Linear(64, 8, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
        x = torch.randn(1, 5, 64, generator=generator)
        error = float((make(layer)(x) - layer(x)).norm() / layer(x).norm())
    if not error <= allowed:
        raise ValueError(f"this machine's {linear} layers are wrong by {error:.1%}; do without them.")


@contextmanager
def _named(linear: Linear) -> Iterator[None]:
    """An operation that PyTorch lacks becomes a ValueError that says so."""
    try:
        yield
    except (AttributeError, RuntimeError) as error:  # an operation that is missing is one or the other
        reason = str(error).splitlines()[0]
        raise ValueError(f"PyTorch {torch.__version__} has no {linear} linear layers here: {reason}.") from None

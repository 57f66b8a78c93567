"""The model as predict and evaluate compute it: the same numbers with less memory traffic, or int8 where asked for.

    fast = prepared(model)                  # what `model.eval()` says, to rounding, without gradients
    fast = prepared(task, "int8")           # the blocks' linear layers in 8 bits: faster on a CPU, a little less exact
    for part in images.split(batch_size(model.config, (224, 224), device)): ...

Without gradients nobody needs the inputs of GELU, LayerScale and the residual sums again, so a block may compute them
in place: their results stay in the processor's cache, and a block holds a third less. And where the head reads [class]
alone, the last of twelve blocks need not be computed for the other tokens: a twelfth of the work is left out.

int8 is dynamic: each row of a weight has its scale, and the activations get theirs from the image at hand, so that an
answer never depends on the images beside it. Residual sums, LayerNorm, softmax, GELU, patches and head stay in float:
a ViT that is quantised as a whole loses its accuracy.
"""

import copy
import math
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.data.quiet import quiet
from vitrail.models import resnet, vit
from vitrail.models.layers import LayerScale, activate
from vitrail.runtime.threads import share_out, shared

Linear = Literal["plain", "int8"]
M = TypeVar("M", bound=nn.Module)
PLAIN = vit.Block, vit.Attention, vit.MLP  # of other parts, somebody else knows what they compute

# Tokens that go through the model together: 16 images of 224 pixels on a CPU. Fewer are no slower there on an idle
# machine, but on a busy one each operation waits for the slowest core; more only need more memory.
TOKENS = {"cpu": 3_200, "cuda": 50_000}


class InferenceBlock(vit.Block):
    """A transformer block that overwrites what nobody reads again. With gradients it is the block that it was."""

    def forward(
        self, z: Float[Tensor, "B N D"], mask: vit.Mask | None = None, places: vit.Places | None = None
    ) -> Float[Tensor, "B N D"]:
        if mask is not None or places is not None or _as_it_was(z):
            return super().forward(z, mask, places)
        attn, mlp = self.attn, self.mlp
        y = F.scaled_dot_product_attention(*attn.project(self.norm1(z)))
        z = _sum(z, self.ls1, attn.proj, attn.norm(y.transpose(1, 2).flatten(2)), ours=False)
        return _sum(z, self.ls2, mlp.fc2, mlp.norm(_activated(mlp.fc1(self.norm2(z)), mlp)), ours=True)

    @property
    def has_first(self) -> bool:
        """Whether `first` is right: a norm of the keys is not linear, and other layers may be anything."""
        plain = isinstance(self.attn.k_norm, nn.Identity) and self.attn.q_bias is None
        return plain and type(self.attn.qkv) is nn.Linear

    def first(self, z: Float[Tensor, "B N D"]) -> Float[Tensor, "B 1 D"]:
        """`forward(z)[:, :1]` for N / D of its cost, to rounding: one token needs neither the others' keys and values
        nor their MLP.

        Keys and values are linear in the normed tokens n, so q (n W_k + b_k)^T = (q W_k^T) n^T + const, which softmax
        forgets, and p (n W_v + b_v) = (p n) W_v + b_v, for the shares p sum to 1.
        """
        attn, n = self.attn, self.norm1(z)
        to_q, to_k, to_v = attn.qkv.weight.chunk(3)
        in_q, _, in_v = (None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.chunk(3)
        q = attn.q_norm(F.linear(n[:, 0], to_q, in_q).unflatten(-1, (attn.heads, -1)))  # (B, heads, D_h)
        q = q.transpose(0, 1) / math.sqrt(q.shape[-1])
        asked = torch.bmm(q, to_k.unflatten(0, (attn.heads, -1))).transpose(0, 1)  # (B, heads, D)
        read = torch.bmm(torch.bmm(asked, n.transpose(1, 2)).softmax(-1), n).transpose(0, 1)  # (heads, B, D)
        y = torch.bmm(read, to_v.unflatten(0, (attn.heads, -1)).transpose(1, 2)).transpose(0, 1).flatten(1)[:, None]
        out = z[:, :1] + self.ls1(attn.proj(attn.norm(y if in_v is None else y + in_v)))
        return out + self.ls2(self.mlp(self.norm2(out)))


class InferenceViT(vit.ViT):
    """On a CPU each core has its own images, in int8 one at a time: the ranges of its activations are its own then.
    Where [class] alone is read after the last block, that block computes no other token."""

    one_by_one = False

    @property
    def reads_first(self) -> bool:
        """Whether the last block's other tokens are nobody's business."""
        last = self.blocks[-1]
        placed = self.config.rotary is not None or self.config.relative != "none"
        return self.config.pool == "token" and not placed and isinstance(last, InferenceBlock) and last.has_first

    def represent(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        if _as_it_was(images):
            return super().represent(images)
        count = share_out(len(images)) if images.device.type == "cpu" else 1
        if count < 2:
            return self._shared(images)
        return torch.cat(shared(count).map(self._shared, images.tensor_split(count)))

    def _shared(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """Of one core's images."""
        if self.one_by_one:
            return torch.cat([self._represent(image) for image in images.split(1)])
        return self._represent(images)

    def _represent(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        # In 16 bits the scores would be rounded, which fused attention keeps in 32.
        if not self.reads_first or images.dtype not in (torch.float32, torch.float64):
            return super().represent(images)
        z = self.embed(images)
        *others, last = self.blocks
        for block in others:
            z = block(z)
        assert isinstance(last, InferenceBlock)
        return self.pre_logits(self.pool(self.norm(last.first(z))))


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
        try:
            with quiet():  # the tensor's type is deprecated; what it is packed into is what counts here
                quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
                self.packed = torch.ops.quantized.linear_prepack(quantised, bias)
        except (AttributeError, RuntimeError) as error:  # an operation that is missing is one or the other
            reason = str(error).splitlines()[0]
            raise ValueError(f"PyTorch {torch.__version__} has no int8 linear layers here: {reason}.") from None

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch E"]:
        return torch.ops.quantized.linear_dynamic(x, self.packed, self.reduced)


# How far an int8 layer's result may be from the plain product, as a share of it.
INT8_ERROR = 0.05


def prepared(module: M, linear: Linear = "plain") -> M:
    """`module`, a model or a task, for inference: in evaluation mode, its blocks replaced by faster ones.

    The original is left as it is. The parameters are its own, so nothing is copied and nothing goes stale; only int8
    weights are copies, of the values that they have now. Blocks that this file does not know, and ResNets, stay as they
    are. Where anything in it is compiled, "plain" is the module itself, in the mode that it is in.

    ValueError for int8 where the model has no transformer blocks, is not in fp32 on a CPU, or PyTorch has no such
    layers for this machine, or wrong ones.
    """
    if linear == "int8":
        _refuse(module)
        return _replace(_twin(module)).eval()
    compiled = any(part._compiled_call_impl is not None for part in module.modules())
    return module if compiled else _twin(module).eval()


def batch_size(config: vit.Config | resnet.Config, image_size: tuple[int, int], device: torch.device) -> int:
    """How many images of (height, width) should go through the model together; at least 1."""
    if isinstance(config, vit.Config):
        rows, columns = config.grid(image_size)
        tokens = config.prefix + rows * columns
    else:
        tokens = math.ceil(image_size[0] / 16) * math.ceil(image_size[1] / 16)
    return max(1, TOKENS.get(device.type, TOKENS["cuda"]) // tokens)


def _twin(module: M) -> M:
    """A copy of the tree of modules around the same parameters and buffers."""
    twin: Any = copy.copy(module)
    twin._modules = {name: child and _twin(child) for name, child in module._modules.items()}
    twin._compiled_call_impl = None  # which is bound to the original, as a checkpointed block's `forward` is
    twin.__dict__.pop("forward", None)
    kind = type(module)
    if isinstance(module, vit.Block) and (kind, type(module.attn), type(module.mlp)) == PLAIN:
        twin.__class__ = InferenceBlock
    elif kind is vit.ViT:
        twin.__class__ = InferenceViT
    return twin


def _replace(twin: M) -> M:
    """Gives the blocks int8 layers, but for the last where it computes one token: it costs nothing as it is.

    A patch that differs by rounding, as it does in a batch of another size, may round to another of 256 steps: so the
    models take their images one by one, and an answer is a function of its image alone, to the last bit (and of the
    number of threads, which is all of torch's where there is one image).
    """
    parts = list(twin.modules())
    spared = []
    for model in parts:
        if isinstance(model, InferenceViT):
            model.one_by_one = True
            spared += [model.blocks[-1]] if model.reads_first else []
    for block in parts:
        if type(block) is InferenceBlock and not any(block is one for one in spared):
            for owner, name in ((block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
                if type(layer := getattr(owner, name)) is nn.Linear:
                    setattr(owner, name, Int8Linear(layer))
    return twin


def _as_it_was(z: Tensor) -> bool:
    """Whether someone reads the intermediate results again, wants another precision of each, or traces a graph."""
    return torch.is_grad_enabled() or torch.is_autocast_enabled(z.device.type) or torch.compiler.is_compiling()


def _sum(
    z: Float[Tensor, "B N D"], scale: nn.Module, linear: nn.Module, y: Float[Tensor, "B N E"], *, ours: bool
) -> Float[Tensor, "B N D"]:
    """z + scale(linear(y)). ours: z may be overwritten.

    On a CPU the product adds itself to z: one pass over the memory less than a sum of its own.
    """
    exact = z.device.type == "cpu" and z.dtype == torch.float32 and not isinstance(scale, LayerScale)
    if exact and type(linear) is nn.Linear and linear.bias is not None:
        z = z.add_(linear.bias) if ours else (z + linear.bias).contiguous()
        z.view(-1, z.shape[-1]).addmm_(y.flatten(0, 1), linear.weight.t())
        return z
    y = linear(y)
    return (y.mul_(scale.gamma) if isinstance(scale, LayerScale) else y).add_(z)


def _activated(hidden: Float[Tensor, "B N H"], mlp: vit.MLP) -> Float[Tensor, "B N M"]:
    """The MLP's non-linearity, in place where it has one input."""
    if mlp.activation in ("gelu", "gelu_tanh"):
        return torch.ops.aten.gelu_(hidden, approximate="tanh" if mlp.activation == "gelu_tanh" else "none")
    return activate(hidden, mlp.activation)


def _refuse(module: nn.Module) -> None:
    """ValueError where the blocks of `module` cannot have int8 layers, or this machine's are wrong."""
    blocks = [part for part in module.modules() if isinstance(part, vit.Block)]
    if not blocks:
        raise ValueError("the model has no transformer blocks, whose linear layers could be int8.")
    weight = blocks[0].attn.qkv.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        kind = str(weight.dtype).removeprefix("torch.")
        raise ValueError(f"the model is in {kind} on {weight.device}; int8 layers need float32 on a CPU.")
    generator, layer = torch.Generator().manual_seed(0), nn.Linear(64, 8, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
        x = torch.randn(1, 5, 64, generator=generator)
        error = float((Int8Linear(layer)(x) - layer(x)).norm() / layer(x).norm())
    if not error <= INT8_ERROR:
        raise ValueError(f"this machine's int8 layers are wrong by {error:.1%}; do without them.")

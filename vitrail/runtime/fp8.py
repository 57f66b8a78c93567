"""Linear layers whose three products run in 8 bits, on GPUs that have them (Hopper, Ada and newer).

    fp8.refuse(device)              # ValueError where the device has none
    fp8.convert(model)              # the large linear layers of its blocks, in place

Micikevicius et al., 2022, "FP8 formats for deep learning": activations and weights in e4m3, which has the finer steps,
gradients in e5m2, which has the wider range. Each tensor has one scale, which puts its largest number on the largest of
the format; it is found anew in each step, on the device. Weights, their gradients and the residuals stay in fp32.

Only training: in evaluation mode the layers are what they were. The mathematics is tested on a CPU; it has not been run
on a GPU yet, so neither its speed nor a whole training is known.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models import vit

ACTIVATION, GRADIENT = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # the products want 16 bytes' alignment of both operands
SMALLEST = 1e-30  # a tensor of zeros has a scale, too
CAPABILITY = (8, 9)


class Fp8Linear(nn.Linear):
    """A linear layer with products in 8 bits while it trains."""

    def forward(self, input: Float[Tensor, "... D"]) -> Float[Tensor, "... E"]:
        if not self.training:
            return super().forward(input)
        rows = input.flatten(0, -2)
        count = len(rows)
        # The rows are what the weight's gradient is summed over: zeros add nothing.
        padded = F.pad(rows, (0, 0, 0, -count % MULTIPLE)) if count % MULTIPLE else rows
        y = _Linear.apply(padded, self.weight, self.bias)
        return y[:count].unflatten(0, input.shape[:-1])


class _Linear(torch.autograd.Function):
    """y = x W^T + b, dx = dy W, dW = dy^T x; x (R, D), W (E, D), b (E,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x8, x_scale = quantise(x, ACTIVATION)
        w8, w_scale = quantise(weight, ACTIVATION)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        ctx.dtype = x.dtype
        bias = None if bias is None else bias.to(torch.bfloat16)
        return product(x8, w8.t(), x_scale, w_scale, torch.bfloat16, bias=bias, fast=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        dy8, dy_scale = quantise(dy, GRADIENT)
        of_input, of_weight, of_bias = ctx.needs_input_grad
        dx = dw = db = None
        if of_input:
            dx = product(dy8, _columns(w8), dy_scale, w_scale, torch.bfloat16).to(ctx.dtype)
        if of_weight:
            dw = product(dy8.t().contiguous(), _columns(x8), dy_scale, x_scale, torch.float32)
        if of_bias:
            db = dy.sum(0, dtype=torch.float32)
        return dx, dw, db


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(8-bit numbers in rows, scale): their product is x but for rounding. scale: float32 (), on x's device.

    What is no finite number makes the result none, so that the loss tells.
    """
    largest = torch.finfo(dtype).max
    top = x.detach().abs().amax().float().clamp(min=SMALLEST)
    # The factor is rounded: a number beyond the largest would become infinite, or none.
    scaled = (x.float() * (largest / top)).clamp(-largest, largest)
    return scaled.to(dtype).contiguous(), top / largest


def product(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    dtype: torch.dtype,
    *,
    bias: Tensor | None = None,
    fast: bool = False,
) -> Tensor:
    """a b + bias for a (R, D) in rows and b (D, E) in columns, 8 bits each; the result (R, E) is of `dtype`.

    fast: the sums of the tensor cores are kept in fewer bits, which is for the forward pass only.
    """
    return torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        a, b, a_scale, b_scale, bias=bias, out_dtype=dtype, use_fast_accum=fast
    )


def _columns(x: Tensor) -> Tensor:
    """The same matrix, laid out by columns, which is how Hopper reads the second factor."""
    return x.t().contiguous().t()


def refuse(device: torch.device) -> None:
    """ValueError where the device has no products in 8 bits."""
    if device.type != "cuda":
        raise ValueError(f"the device {device} has no products in 8 bits (fp8); use --precision bf16 or fp32.")
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        raise ValueError(
            f"{torch.cuda.get_device_name(device)} has compute capability {found[0]}.{found[1]}, and products in 8 "
            f"bits (fp8) begin at {CAPABILITY[0]}.{CAPABILITY[1]}; use --precision bf16."
        )


def convert(model: nn.Module) -> None:
    """Makes the linear layers of every block Fp8Linear, in place, names and weights as they are; before it is compiled.

    ValueError where no layer has a width and an output of multiples of 16, as 8-bit products want them.
    """
    found = 0
    for block in model.modules():
        if isinstance(block, vit.Block):
            for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                if layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0:
                    layer.__class__ = Fp8Linear
                    found += 1
    if not found:
        wanted = f"a width and an output of multiples of {MULTIPLE}, as fp8 wants them"
        raise ValueError(f"no linear layer of the model's blocks has {wanted}; use --precision bf16.")

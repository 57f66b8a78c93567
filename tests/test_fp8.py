"""Linear layers in 8 bits: their mathematics against float64, on a CPU, where torch has the same product.

Rounding to e4m3 (3 bits of mantissa) is off by 2^-4 at most, to e5m2 by 2^-3, of each number that is not tiny.
"""

import pytest
import torch
from reference import perturb
from torch import nn

from vitrail.models.vit import Config, ViT
from vitrail.runtime import fp8
from vitrail.runtime.blocks import autocast
from vitrail.runtime.fp8 import ACTIVATION, GRADIENT, Fp8Linear, convert, quantise

SMALL = {"image_size": (32, 32), "patch_size": (8, 8), "width": 32, "depth": 2, "heads": 2, "mlp_dim": 64, "classes": 5}


def rounded(x, dtype):
    """x as the layer sees it, in float64: rounded to 8 bits with the tensor's own scale."""
    scale = x.abs().max().float() / torch.finfo(dtype).max
    return (x.float() / scale).to(dtype).double() * scale.double()


def layer(inputs=32, outputs=48, bias=True):
    torch.manual_seed(0)
    found = nn.Linear(inputs, outputs, bias=bias)
    found.__class__ = Fp8Linear
    return found


def far(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("dtype", "bits"), [(ACTIVATION, 3), (GRADIENT, 2)])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_numbers_of_any_size_are_rounded_to_the_bits_of_the_format(dtype, bits, size):
    x = size * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    numbers, scale = quantise(x, dtype)
    assert numbers.dtype == dtype
    back = numbers.double() * scale.double()
    assert float(back.abs().max()) == pytest.approx(float(x.abs().max()), rel=1e-6)  # the largest is exact
    large = x.abs() > x.abs().max() / 64  # smaller ones have fewer bits in e4m3
    assert float(((back - x).abs() / x.abs())[large].max()) <= 2.0 ** -(bits + 1) * 1.01


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 0.0])
def test_what_is_not_finite_stays_so_and_zeros_stay_zeros(odd):
    numbers, scale = quantise(torch.full((4, 4), odd), ACTIVATION)
    found = numbers.float() * scale
    assert not found.any() if odd == 0 else not found.isfinite().any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 17, 32), (5, 32)])
def test_all_three_products_are_those_of_the_rounded_numbers(shape, bias):
    linear, generator = layer(bias=bias), torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, requires_grad=True)
    y = linear(x)
    dy = torch.randn(y.shape, generator=generator).to(y.dtype)
    y.backward(dy)
    rows, weight = rounded(x.detach().flatten(0, -2), ACTIVATION), rounded(linear.weight.detach(), ACTIVATION)
    back = rounded(dy.flatten(0, -2), GRADIENT)
    expected = rows @ weight.T + (linear.bias.detach().double() if bias else 0)
    assert y.dtype == torch.bfloat16
    assert y.shape == (*shape[:-1], 48)
    assert far(y.detach().flatten(0, -2), expected) < 0.01  # bfloat16's rounding
    assert far(x.grad.flatten(0, -2), back @ weight) < 0.01
    assert far(linear.weight.grad, back.T @ rows) < 1e-5  # float32 to the end
    assert linear.weight.grad.dtype == x.grad.dtype == torch.float32
    if bias:
        assert far(linear.bias.grad, dy.double().flatten(0, -2).sum(0)) < 1e-5


def test_what_is_frozen_gets_no_gradient_and_evaluation_is_in_all_bits():
    linear = layer().requires_grad_(False)
    x = torch.randn(16, 32, requires_grad=True)
    linear(x).sum().backward()
    assert x.grad.any()
    assert linear.weight.grad is linear.bias.grad is None
    assert torch.equal(linear.eval()(x), nn.functional.linear(x, linear.weight, linear.bias))


def model(**changes):
    return perturb(ViT(Config(**{**SMALL, **changes})), dtype=torch.float32).train()


def step(model):
    """Loss and gradients as a step of training has them."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    with autocast("fp8", torch.device("cpu")):
        loss = model(images).float().square().mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def test_the_layers_of_the_blocks_are_converted_and_no_others():
    changed = model(mlp_dim=40)
    names = list(changed.state_dict())
    convert(changed)
    assert list(changed.state_dict()) == names
    found = {name for name, module in changed.named_modules() if type(module) is Fp8Linear}
    assert found == {f"blocks.{i}.attn.{layer}" for i in (0, 1) for layer in ("qkv", "proj")}  # 40 is no multiple of 16
    with pytest.raises(ValueError, match="multiples of 16, as fp8 wants them; use --precision bf16"):
        convert(model(width=24, mlp_dim=40))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it while it traces a block
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_also_in_one_graph_a_block_is_near_that_in_bfloat16(compiled):
    torch.compiler.reset()
    plain, changed = model(), model()
    convert(changed)
    for block in changed.blocks if compiled else ():
        block.compile(fullgraph=True, backend="aot_eager")
    (loss, gradients), (near, others) = step(plain), step(changed)
    assert float(near) == pytest.approx(float(loss), rel=0.15)  # these weights are large
    for name, gradient in gradients.items():
        if not name.endswith("qkv.bias"):  # a third of it, that of k, is rounding alone
            assert far(others[name], gradient.double()) < 0.3, name


def test_devices_without_8_bits_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match=r"an old one has compute capability 8\.0, .* begin at 8\.9"):
        fp8.refuse(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    fp8.refuse(torch.device("cuda"))

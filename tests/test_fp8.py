"""Linear layers in 8 bits: their mathematics against float64, on a CPU, where torch has the same product.

Rounding to e4m3 (3 bits of mantissa) is off by 2^-4 at most, to e5m2 by 2^-3, of each number that is not tiny.
"""

import copy

import pytest
import torch
from reference import perturb
from torch import nn

from vitrail.models.vit import Config, ViT
from vitrail.runtime import fp8
from vitrail.runtime.blocks import autocast, checkpoint_blocks, compile_blocks
from vitrail.runtime.fp8 import ACTIVATION, GRADIENT, Fp8Linear, convert, product, quantise

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
@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 1e20])
def test_numbers_of_any_size_are_rounded_to_the_bits_of_the_format(dtype, bits, size):
    x = size * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    numbers, scale = quantise(x, dtype)
    assert numbers.dtype == dtype
    assert scale.shape == ()
    back = numbers.double() * scale.double()
    assert float(back.abs().max()) == pytest.approx(float(x.abs().max()), rel=1e-6)  # the largest is exact
    large = x.abs() > x.abs().max() / 64  # smaller ones have fewer bits in e4m3
    assert float(((back - x).abs() / x.abs())[large].max()) <= 2.0 ** -(bits + 1) * 1.01


def test_zeros_stay_zeros_and_what_is_no_number_stays_none():
    numbers, scale = quantise(torch.zeros(16, 16), GRADIENT)
    assert not numbers.float().any()
    assert scale.isfinite()
    for bad in (float("nan"), float("inf")):
        x = torch.ones(4, 4)
        x[1, 2] = bad
        numbers, scale = quantise(x, ACTIVATION)
        assert not (numbers.float() * scale)[1, 2].isfinite()


@pytest.mark.parametrize("first", [ACTIVATION, GRADIENT])
def test_the_product_is_that_of_the_rounded_numbers(first):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(17, 32, generator=generator), torch.randn(48, 32, generator=generator)
    (a8, a_scale), (b8, b_scale) = quantise(a, first), quantise(b, ACTIVATION)
    found = product(a8, b8.t(), a_scale, b_scale, torch.float32)
    assert far(found, rounded(a, first) @ rounded(b, ACTIVATION).T) < 1e-5


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(32, 32), (2, 17, 32), (5, 32)])
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


def test_the_layer_is_near_the_layer_in_float32():
    linear, generator = layer(128, 128), torch.Generator().manual_seed(1)
    x = torch.randn(4, 20, 128, generator=generator, requires_grad=True)
    linear(x).backward(dy := torch.randn(4, 20, 128, generator=generator).bfloat16())
    exact = x.detach().clone().requires_grad_()
    plain = nn.Linear(128, 128)
    plain.load_state_dict(linear.state_dict())
    plain(exact).backward(dy.float())
    assert far(linear(x).detach(), plain(exact).detach().double()) < 0.05
    assert far(x.grad, exact.grad.double()) < 0.08
    assert far(linear.weight.grad, plain.weight.grad.double()) < 0.08


def test_evaluation_is_the_linear_layers_own():
    linear, x = layer().eval(), torch.randn(3, 5, 32)
    assert torch.equal(linear(x), nn.functional.linear(x, linear.weight, linear.bias))


def test_what_is_frozen_gets_no_gradient():
    linear = layer().requires_grad_(False)
    x = torch.randn(16, 32, requires_grad=True)
    linear(x).sum().backward()
    assert x.grad.any()
    assert linear.weight.grad is None
    assert linear.bias.grad is None


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
    plain, changed = model(mlp_dim=40), model(mlp_dim=40)
    names = list(changed.state_dict())
    convert(changed)
    assert list(changed.state_dict()) == names
    found = {name for name, module in changed.named_modules() if type(module) is Fp8Linear}
    assert found == {f"blocks.{i}.attn.{layer}" for i in (0, 1) for layer in ("qkv", "proj")}  # 40 is no multiple of 16
    plain.load_state_dict(changed.state_dict())


def test_a_model_without_such_layers_says_so():
    with pytest.raises(ValueError, match="multiples of 16, as fp8 wants them; use --precision bf16"):
        convert(model(width=24, mlp_dim=40))


def test_a_step_is_near_that_in_bfloat16():
    plain, changed = model(), model()
    convert(changed)
    (loss, gradients), (near, others) = step(plain), step(changed)
    assert float(near) == pytest.approx(float(loss), rel=0.15)  # these weights are large
    for name, gradient in gradients.items():
        if not name.endswith("qkv.bias"):  # a third of it, that of k, is rounding alone
            assert far(others[name], gradient.double()) < 0.3, name


def test_checkpointing_changes_no_bit():
    plain, again = model(), model()
    for each in (plain, again):
        convert(each)
    checkpoint_blocks(again)
    (loss, gradients), (same, others) = step(plain), step(again)
    assert torch.equal(loss, same)
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


@pytest.mark.usefixtures("unchecked")
def test_the_layer_is_one_graph_of_the_same_products():
    torch.compiler.reset()
    plain, x = layer(), torch.randn(3, 5, 32, requires_grad=True)
    compiled, again = copy.deepcopy(plain), x.detach().clone().requires_grad_()
    y, same = plain(x), torch.compile(compiled, fullgraph=True, backend="aot_eager")(again)
    torch.testing.assert_close(same, y, rtol=1e-2, atol=1e-2)
    for each in (y, same):
        each.float().square().mean().backward()
    pairs = [(x, again), (plain.weight, compiled.weight), (plain.bias, compiled.bias)]
    assert all(far(b.grad, a.grad.double()) < 0.01 for a, b in pairs)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it while it traces a block
@pytest.mark.usefixtures("unchecked")
def test_a_step_in_one_graph_a_block_is_near_that_in_bfloat16():
    torch.compiler.reset()
    plain, compiled = model(), model()
    convert(compiled)
    for block in compiled.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    (loss, gradients), (near, others) = step(plain), step(compiled)
    assert float(near) == pytest.approx(float(loss), rel=0.15)
    assert all(far(others[name], g.double()) < 0.3 for name, g in gradients.items() if not name.endswith("qkv.bias"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.usefixtures("unchecked")
def test_inductors_code_trains_alike():
    torch.compiler.reset()
    plain = model()
    convert(plain)
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled)
    assert float(step(compiled)[0]) == pytest.approx(float(step(plain)[0]), rel=0.1)


def test_devices_without_8_bits_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="the device cpu has no products in 8 bits"):
        fp8.refuse(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match=r"an old one has compute capability 8\.0, .* begin at 8\.9"):
        fp8.refuse(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    fp8.refuse(torch.device("cuda"))

"""Prepared models say what the model says: to rounding, and in int8 within a stated error."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from vitrail.models import resnet, vit
from vitrail.runtime.blocks import checkpoint_blocks, compile_blocks
from vitrail.runtime.inference import InferenceBlock, Int8Linear, batch_size, prepared

ROUNDING = 3e-6
STEM, RESNET = resnet.Config((1,), classes=0), resnet.Config((1, 1), classes=4)
SMALL = {"image_size": (32, 32), "patch_size": (8, 8), "width": 32, "depth": 3, "heads": 4, "mlp_dim": 64}
KINDS = {
    "the paper's": {},
    "dropout": {"dropout": 0.5, "attention_dropout": 0.5, "drop_path": 0.5},
    "LayerScale": {"layer_scale": 0.5},
    "registers": {"registers": 3},
    "tanh": {"activation": "gelu_tanh"},
    "quick": {"activation": "quick_gelu"},
    "gated": {"activation": "swiglu", "layer_scale": 0.5},
    "qk norm": {"qk_norm": True},
    "no qkv bias": {"qkv_bias": False},
    "average": {"pool": "avg", "class_token": False, "norm_first": False},
    "map": {"pool": "map", "positions": "sincos"},
    "pre-logits": {"representation": 24, "pre_norm": True, "patch_bias": False},
    "hybrid": {"stem": STEM, "patch_size": (1, 1)},
}


def model(dtype=torch.float32, **kind):
    torch.manual_seed(0)
    made = vit.ViT(vit.Config(**SMALL | kind, classes=10))
    with torch.no_grad():
        for parameter in made.parameters():  # scales, biases and the head begin as constants
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.to(dtype)


def images(count=3, size=(32, 32), dtype=torch.float32):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)


@torch.inference_mode()
def said(network, x):
    return network(x)


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("size", [(32, 32), (24, 44)])
@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_the_model_says(kind, size):
    made, x = model(**KINDS[kind]), images(size=size)
    fast = prepared(made.train())
    assert any(isinstance(part, InferenceBlock) for part in fast.modules())
    assert distance(said(fast, x), said(made.eval(), x)) < ROUNDING
    with torch.no_grad():
        assert distance(fast.tokens(x), made.tokens(x)) < ROUNDING
        exact, there = deepcopy(made).double(), x.double()
        assert distance(prepared(exact)(there), exact(there)) < 1e-13


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_block_computes_the_token_that_is_read(kind, monkeypatch):
    made, x = model(**KINDS[kind]), images(1)
    fast, calls = prepared(made), []
    forward = InferenceBlock.forward
    monkeypatch.setattr(InferenceBlock, "forward", lambda block, z: calls.append(block) or forward(block, z))
    said(fast, x)
    alone = kind not in ("qk norm", "average", "map")
    assert fast.reads_first == alone
    assert len(calls) == 3 - alone
    for count in (1, 4) if fast.blocks[2].has_first else ():
        z = torch.randn(count, 17, 32)
        with torch.inference_mode():
            expected = forward(fast.blocks[2], z)[:, :1]
            assert distance(fast.blocks[2].first(z), expected) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_int8_is_within_a_few_percent(kind):
    made, x = model(**KINDS[kind]), images()
    fast = prepared(made, "int8")
    assert sum(isinstance(part, Int8Linear) for part in fast.modules()) == 12 - 4 * fast.reads_first
    assert 0 < distance(said(fast, x), said(made.eval(), x)) < 0.08


@pytest.mark.parametrize("linear", ["plain", "int8"])
def test_the_original_is_left_as_it_is(linear):
    made = model(dropout=0.1, layer_scale=0.1)
    made.blocks[1].eval()
    parts = [(type(part), part.training) for part in made.modules()]
    before, x = deepcopy(made.state_dict()), images()
    fast = prepared(made, linear)
    said(fast, x)
    assert torch.equal(x, images())
    assert [(type(part), part.training) for part in made.modules()] == parts
    assert made.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert not any(part.training for part in fast.modules())
    made(x).sum().backward()  # it still learns
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_nothing_is_copied_and_nothing_goes_stale():
    made, x = model(), images()
    fast = prepared(made)
    assert [id(p) for p in fast.parameters()] == [id(p) for p in made.parameters()]
    with torch.no_grad():
        made.blocks[1].mlp.fc1.weight.mul_(3)
        made.head.bias.add_(1)
    assert distance(said(fast, x), said(made.eval(), x)) < ROUNDING
    made.double()
    assert distance(said(fast, x.double()), said(made, x.double())) < 1e-13


def test_autocast_and_gradients_find_the_block_that_it_was():
    made, x = model(layer_scale=0.5), images()
    fast = prepared(made)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), made.eval()(x))
    made(x).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in made.parameters()]
    made.zero_grad()
    fast(x).square().sum().backward()
    for parameter, gradient in zip(fast.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_what_it_does_not_know_stays_as_it_is():
    class Other(vit.Block):
        def forward(self, z):
            return z * 2

    made, net = model(), RESNET.build()
    made.blocks[1].__class__ = Other
    fast, x, large = prepared(made), images(), images(size=(64, 64))
    assert [type(block) for block in fast.blocks] == [InferenceBlock, Other, InferenceBlock]
    assert distance(said(fast, x), said(made.eval(), x)) < ROUNDING
    made.blocks[2].__class__ = Other
    assert not prepared(made).reads_first
    assert torch.equal(said(prepared(net), large), said(net.eval(), large))


def test_checkpointed_blocks_are_prepared_and_compiled_ones_are_left():
    made, x = model(), images()
    expected = said(made.eval(), x)
    checkpoint_blocks(made)
    fast = prepared(made)
    assert {type(block) for block in fast.blocks} == {InferenceBlock}
    assert distance(said(fast, x), expected) < ROUNDING
    compile_blocks(made)  # nothing is compiled before it is called
    assert prepared(made) is made
    # A copy of what is compiled would call the original.
    small = prepared(made, "int8")
    assert all(part._compiled_call_impl is None for part in small.modules())


@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
def test_an_image_in_int8_is_a_function_of_itself_alone(threads):
    """One of the others is a hundred times brighter: with one range for the batch it would drown the rest."""
    made, x = model(), images(6)
    assert distance(said(prepared(made), x), said(made.eval(), x)) < ROUNDING  # each core has images of its own
    fast = prepared(made, "int8")
    x[2] *= 100
    together = said(fast, x)
    assert torch.equal(said(fast, x.flip(0)), together.flip(0))
    for place in range(5):
        assert torch.equal(said(fast, x[place : place + 2]), together[place : place + 2])
        assert distance(said(fast, x[place : place + 1]), together[place : place + 1]) < 0.01
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_layer_has_a_scale_for_each_row(bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(96, 7, bias=bias), torch.randn(2, 5, 96)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-4, 2, 7)[:, None])
        layer.weight[3] = 0
        small, exact = Int8Linear(layer)(x), layer(x)
    assert small.dtype == torch.float32
    for row in range(7):
        error = float((small[..., row] - exact[..., row]).norm())
        assert error <= 0.04 * float(exact[..., row].norm())
    assert torch.equal(small[..., 3], exact[..., 3])


def test_int8_layers_that_are_not_there_or_wrong_are_found_before_they_are_used(monkeypatch):
    def gone(*_):
        raise RuntimeError("Didn't find engine for operation\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "quantize_per_channel", gone)
        with pytest.raises(ValueError, match=r"no int8 linear layers here: Didn't find engine for operation\.$"):
            prepared(model(), "int8")
    forward = Int8Linear.forward
    monkeypatch.setattr(Int8Linear, "forward", lambda layer, x: forward(layer, x) * 2)
    for network, message in (
        (model(), r"this machine's int8 layers are wrong by \d+\.\d%; do without them"),
        (model(dtype=torch.float64), "the model is in float64 on cpu; int8 layers need float32 on a CPU"),
        (RESNET.build(), "no transformer blocks, whose linear layers could be int8"),
    ):
        with pytest.raises(ValueError, match=message):
            prepared(network, "int8")


def test_batches_are_small_on_a_cpu_large_on_a_gpu_and_never_empty():
    config, cpu = vit.Config(), torch.device("cpu")
    sizes = [batch_size(config, (side, side), cpu) for side in (224, 2048)]
    assert batch_size(config, (224, 224), torch.device("cuda")) >= 64 > sizes[0] > sizes[1] == 1
    assert batch_size(RESNET, (2048, 2048), cpu) >= 1


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", ["plain", "int8"])
def test_parts_of_somebody_elses_are_used_as_they_are(kind):
    mine = model().eval()
    mine.blocks[0].mlp.fc1, mine.blocks[1].mlp = Twice(32, 64), nn.Sequential(Twice(32, 32))
    difference = said(prepared(mine, kind), images()) - said(mine, images())
    assert difference.norm() < (0.05 if kind == "int8" else ROUNDING) * said(mine, images()).norm()

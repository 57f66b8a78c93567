"""Prepared models say what the model says: to rounding, and in int8 within a stated error."""

import warnings
from copy import deepcopy

import pytest
import torch
from torch import nn

from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import resnet, vit
from vitrail.runtime.blocks import checkpoint_blocks, compile_blocks
from vitrail.runtime.inference import InferenceBlock, Int8Linear, batch_size, prepared
from vitrail.tasks import Classify, ClassifyConfig

CPU = torch.device("cpu")
ROUNDING = 3e-6
STEM = resnet.Config((1,), classes=0)
SMALL = {"image_size": (32, 32), "patch_size": (8, 8), "width": 32, "depth": 3}
SMALL |= {"heads": 4, "mlp_dim": 64, "classes": 10}
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
    made = vit.ViT(vit.Config(**(SMALL | kind)))
    with torch.no_grad():
        for parameter in made.parameters():  # scales, biases and the head begin as constants
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.to(dtype)


def images(count=3, size=(32, 32), dtype=torch.float32):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)


def said(network, x):
    with torch.inference_mode():
        return network(x)


def distance(found, expected):
    """As a share of what is expected."""
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
    if fast.blocks[2].has_first:
        for count in (1, 4):
            z = torch.randn(count, 17, 32)
            with torch.inference_mode():
                first = fast.blocks[2].first(z)
                assert first.shape == (count, 1, 32)
                assert distance(first, forward(fast.blocks[2], z)[:, :1]) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_int8_is_within_a_few_percent(kind):
    made, x = model(**KINDS[kind]), images()
    fast = prepared(made, "int8")
    assert sum(isinstance(part, Int8Linear) for part in fast.modules()) == 12 - 4 * fast.reads_first
    assert 0 < distance(said(fast, x), said(made.eval(), x)) < 0.06


@pytest.mark.parametrize("linear", ["plain", "int8"])
def test_the_original_is_left_as_it_is(linear):
    made = model(dropout=0.1, layer_scale=0.1)
    made.blocks[1].eval()
    modes = [part.training for part in made.modules()]
    kinds = [type(part) for part in made.modules()]
    before, x = deepcopy(made.state_dict()), images()
    fast = prepared(made, linear)
    said(fast, x)
    assert [part.training for part in made.modules()] == modes
    assert [type(part) for part in made.modules()] == kinds
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


def test_in_16_bits_it_rounds_where_the_model_does():
    made, x = model(dtype=torch.bfloat16), images(dtype=torch.bfloat16)
    found = said(prepared(made), x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, said(made.eval(), x))


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


def test_the_input_of_a_block_is_not_overwritten():
    made = prepared(model())
    z = torch.randn(2, 17, 32)
    before = z.clone()
    for block in made.blocks:
        said(block, z)
        assert torch.equal(z, before)


def test_a_task_is_prepared_as_a_whole():
    made = model(dropout=0.5)
    task = Classify(made, Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), ClassifyConfig())
    fast = prepared(task.train())
    assert isinstance(fast, Classify)
    assert isinstance(fast.model.blocks[0], InferenceBlock)
    assert task.training
    assert task.model is made
    batch = Batch(images=torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    found, expected = said(fast.predict, batch), task.eval().predict(batch)
    assert all(distance(found[name], expected[name]) < ROUNDING for name in ("features", "logits"))


def test_what_it_does_not_know_stays_as_it_is():
    class Other(vit.Block):
        def forward(self, z):
            return z * 2

    made, net = model(), resnet.ResNet(resnet.Config((1, 1), classes=4))
    made.blocks[1].__class__ = Other
    fast, x = prepared(made), images()
    assert [type(block) for block in fast.blocks] == [InferenceBlock, Other, InferenceBlock]
    assert distance(said(fast, x), said(made.eval(), x)) < ROUNDING
    made.blocks[2].__class__ = Other
    assert not prepared(made).reads_first
    assert torch.equal(said(prepared(net), images(size=(64, 64))), said(net.eval(), images(size=(64, 64))))


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


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_image_in_int8_is_a_function_of_itself_alone(threads):
    """One of the others is a hundred times brighter: with one range for the batch it would drown the rest."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    fast, x = prepared(model(), "int8"), images(6)
    x[2] *= 100
    together = said(fast, x)
    assert torch.equal(said(fast, x.flip(0)), together.flip(0))
    for place in range(5):
        assert torch.equal(said(fast, x[place : place + 2]), together[place : place + 2])
        assert distance(said(fast, x[place : place + 1]), together[place : place + 1]) < 0.01
    assert torch.get_num_threads() == threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_cores_that_have_their_own_images_say_the_same(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    made, x = model(), images(5)
    assert distance(said(prepared(made), x), said(made.eval(), x)) < ROUNDING
    with torch.no_grad():
        assert distance(prepared(made)(x), made(x)) < ROUNDING
    torch.set_num_threads(before)


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


def test_preparing_int8_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(model(), "int8")


def test_where_pytorch_has_no_such_layers_it_says_so(monkeypatch):
    def gone(*_):
        raise RuntimeError("Didn't find engine for operation\nmore")

    monkeypatch.setattr(torch, "quantize_per_channel", gone)
    with pytest.raises(ValueError, match=r"has no int8 linear layers here: Didn't find engine for operation\.$"):
        prepared(model(), "int8")


def test_wrong_products_are_found_before_they_are_used(monkeypatch):
    forward = Int8Linear.forward
    monkeypatch.setattr(Int8Linear, "forward", lambda layer, x: forward(layer, x) * 2)
    with pytest.raises(ValueError, match=r"this machine's int8 layers are wrong by \d+\.\d%; do without them"):
        prepared(model(), "int8")


def test_a_model_for_which_there_are_no_such_layers_is_refused():
    with pytest.raises(ValueError, match="the model is in float64 on cpu; int8 layers need float32 on a CPU"):
        prepared(model(dtype=torch.float64), "int8")
    with pytest.raises(ValueError, match="no transformer blocks, whose linear layers could be int8"):
        prepared(resnet.ResNet(resnet.Config((1, 1), classes=4)), "int8")


def test_batches_are_small_on_a_cpu_large_on_a_gpu_and_never_empty():
    config = vit.Config()
    sizes = [batch_size(config, (side, side), CPU) for side in (32, 64, 224, 384, 2048)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 16
    assert sizes[-1] == 1
    assert batch_size(config, (224, 224), torch.device("cuda")) >= 64
    assert batch_size(resnet.Config((1,)), (224, 224), CPU) >= 1


@pytest.mark.parametrize("kind", ["the paper's", "hybrid", "map"])
def test_the_size_of_the_batch_changes_nothing_but_rounding(kind):
    fast, x = prepared(model(**KINDS[kind])), images(7)
    whole = said(fast, x)
    for size in (1, 3):
        assert distance(torch.cat([said(fast, part) for part in x.split(size)]), whole) < 1e-5

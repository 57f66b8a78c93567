"""Precision, compilation, activation checkpointing: the same training step, in less time or memory."""

import copy
from dataclasses import replace

import pytest
import torch
from reference import perturb

from vitrail.models import resnet
from vitrail.models.layers import drawing
from vitrail.models.resnet import Bottleneck, ResNet
from vitrail.models.vit import Block, Config, ViT
from vitrail.runtime.blocks import autocast, checkpoint_blocks, compile_blocks, uncompiled

SMALL = {"image_size": (32, 32), "patch_size": (8, 8), "width": 32, "depth": 3, "heads": 2, "mlp_dim": 64, "classes": 5}
NOISE = {"dropout": 0.2, "attention_dropout": 0.2, "drop_path": 0.2}
STEM = {"patch_size": (2, 2), "stem": resnet.Config(blocks=(2,), classes=0)}
MODELS = {
    "plain": Config(**SMALL),
    "noise": Config(**SMALL, **NOISE),
    "hybrid": Config(**{**SMALL, **STEM}, **NOISE),
    "ResNet": resnet.Config(blocks=(1, 1), classes=5),
}


def pair(name):
    """A model, and the same model checkpointed."""
    config = MODELS[name]
    model = perturb(ResNet(config) if isinstance(config, resnet.Config) else ViT(config), dtype=torch.float32).train()
    checkpointed = copy.deepcopy(model)
    checkpoint_blocks(checkpointed)
    return model, checkpointed


def step(model, run=None):
    """Loss and gradients of one step, and the bytes that were kept for the backward pass."""
    kept, images = {}, torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    with drawing(model, torch.arange(4)):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = (model if run is None else run)(images).square().mean()
        # A parameter is there with or without us.
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        size = sum(n for pointer, n in kept.items() if pointer not in weights)
        torch.manual_seed(2)  # what is drawn again is not drawn from torch's generator
        loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, size


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_the_same_bit_for_bit_with_the_same_dropout(name):
    model, checkpointed = pair(name)
    loss, gradients, _ = step(model)
    again, others, _ = step(checkpointed)
    assert torch.equal(loss, again)
    assert list(gradients) == list(others)
    for key, gradient in gradients.items():
        assert torch.equal(gradient, others[key]), key


@pytest.mark.parametrize("name", MODELS)
def test_less_is_kept_for_the_backward_pass(name):
    model, checkpointed = pair(name)
    assert step(checkpointed)[2] < 0.6 * step(model)[2]


@pytest.mark.parametrize("name", MODELS)
def test_names_types_and_copies_stay_what_they_were(name):
    model, checkpointed = pair(name)
    assert list(checkpointed.state_dict()) == list(model.state_dict())
    assert [n for n, _ in checkpointed.named_modules()] == [n for n, _ in model.named_modules()]
    units = [m for m in checkpointed.modules() if isinstance(m, Block | Bottleneck)]
    assert len(units) == len([m for m in model.modules() if isinstance(m, Block | Bottleneck)])
    classes = [type(m) for m in checkpointed.modules()]
    checkpoint_blocks(checkpointed)  # twice is once
    assert [type(m) for m in checkpointed.modules()] == classes
    other = copy.deepcopy(checkpointed)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert torch.equal(step(checkpointed)[0], step(model)[0])
    model.load_state_dict(other.state_dict())
    assert not step(model)[0]


def test_nothing_is_computed_again_without_gradients():
    _, checkpointed = pair("plain")
    calls = []
    checkpointed.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        checkpointed(torch.zeros(1, 3, 32, 32))
    assert len(calls) == 1
    checkpointed(torch.zeros(1, 3, 32, 32)).sum().backward()
    assert len(calls) == 3


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["noise", "hybrid"])
def test_it_compiles_to_one_graph_with_the_same_step(name):
    torch.compiler.reset()
    model, checkpointed = pair(name)
    compiled = torch.compile(checkpointed, fullgraph=True, backend="aot_eager")
    loss, gradients, _ = step(model)
    again, others, _ = step(checkpointed, compiled)
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-6)
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp64"])
def test_on_a_cpu_products_stay_as_they_are_unless_bf16_is_asked_for(precision):
    a = torch.randn(4, 4)
    with autocast(precision, torch.device("cpu")):
        assert (a @ a).dtype == torch.float32
    for half in ("bf16", "fp8"):  # what has no product in 8 bits
        with autocast(half, torch.device("cpu")):
            assert (a @ a).dtype == torch.bfloat16


def test_a_gpu_without_bf16_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    with pytest.raises(ValueError, match="an old one has no bf16; use --precision fp32"):
        autocast("bf16", torch.device("cuda"))


DEEP = Config(**{**SMALL, "depth": 12}, drop_path=0.2)


def graphs(monkeypatch, config, sizes):
    """How many graphs the blocks become over steps of these numbers of images."""
    torch.compiler.reset()
    made = []

    def compiler(graph, inputs):
        made.append(graph)
        return graph.forward

    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: real(self, **how | {"backend": compiler}))
    model = perturb(ViT(config), dtype=torch.float32).train()
    compile_blocks(model)
    for size in sizes:
        with drawing(model, torch.arange(size)):
            model(torch.randn(size, 3, 32, 32)).square().mean().backward()
        model.zero_grad()
    return len(made), model


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it while it traces a block
@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_all_blocks_are_one_graph_whatever_their_rates_of_stochastic_depth(monkeypatch, rate):
    count, model = graphs(monkeypatch, replace(DEEP, drop_path=rate), [2, 2])
    assert count == 1
    assert model.state_dict().keys() == ViT(DEEP).state_dict().keys()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_uneven_parts_are_two_graphs_and_evaluation_none(monkeypatch):
    count, model = graphs(monkeypatch, DEEP, [4, 4, 3, 4, 4, 3])
    assert count == 2
    images = torch.randn(5, 3, 32, 32)
    with torch.compiler.set_stance("fail_on_recompile"), uncompiled(), torch.no_grad():
        plain = ViT(DEEP).eval()
        plain.load_state_dict(model.state_dict())
        assert torch.equal(model.eval()(images), plain(images))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_blocks_train_as_eager_ones_under_the_same_names(unchecked):
    torch.compiler.reset()
    model, compiled = pair("plain")[0], pair("plain")[0]
    compile_blocks(compiled)
    assert list(model.state_dict()) == list(compiled.state_dict())
    losses = []
    for each in (model, compiled):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.01)
        for _ in range(3):
            loss = each(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-4)
    assert losses[0] > losses[2]

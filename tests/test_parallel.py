"""Activation checkpointing: the same training step, bit for bit, in less memory."""

import copy

import pytest
import torch
from reference import perturb

from vitrail.models import resnet
from vitrail.models.resnet import Bottleneck, ResNet
from vitrail.models.vit import Block, Config, ViT
from vitrail.parallel import checkpoint_blocks

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
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = (model if run is None else run)(images).square().mean()
    # A parameter is there with or without us.
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    size = sum(n for pointer, n in kept.items() if pointer not in weights)
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

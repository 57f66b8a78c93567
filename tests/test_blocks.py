"""Precision, compilation, activation checkpointing: the same training step, in less time or memory."""

import copy

import pytest
import torch
from reference import perturb

from vitrail.models import resnet
from vitrail.models.layers import drawing
from vitrail.models.resnet import ResNet
from vitrail.models.vit import Config, ViT
from vitrail.runtime.blocks import autocast, checkpoint_blocks

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
def test_less_is_kept_for_the_same_loss_and_gradients_bit_for_bit_with_the_same_dropout(name):
    model, checkpointed = pair(name)
    loss, gradients, size = step(model)
    again, others, smaller = step(checkpointed)
    assert torch.equal(loss, again)
    assert list(gradients) == list(others)
    assert all(torch.equal(gradient, others[key]) for key, gradient in gradients.items())
    assert smaller < 0.6 * size


@pytest.mark.parametrize("name", MODELS)
def test_names_types_and_copies_stay_what_they_were(name):
    model, checkpointed = pair(name)
    checkpoint_blocks(checkpointed)  # twice is once
    assert list(checkpointed.state_dict()) == list(model.state_dict())
    assert [(n, type(m)) for n, m in checkpointed.named_modules()] == [(n, type(m)) for n, m in model.named_modules()]
    other = copy.deepcopy(checkpointed)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.9)
    assert torch.equal(step(checkpointed)[0], step(model)[0])
    model.load_state_dict(other.state_dict())
    assert torch.equal(step(other)[0], step(model)[0])


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
def test_it_compiles_to_one_graph_with_the_same_step():
    torch.compiler.reset()
    model, checkpointed = pair("hybrid")
    loss, gradients, _ = step(model)
    again, others, _ = step(checkpointed, torch.compile(checkpointed, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-6)
    for key, gradient in gradients.items():
        torch.testing.assert_close(others[key], gradient, rtol=1e-4, atol=1e-6, msg=key)


# fp8: of what has no product in 8 bits.
@pytest.mark.parametrize(("precision", "bits"), [("auto", 32), ("fp32", 32), ("fp64", 32), ("bf16", 16), ("fp8", 16)])
def test_on_a_cpu_products_stay_as_they_are_unless_bf16_is_asked_for(precision, bits):
    a = torch.randn(4, 4)
    with autocast(precision, torch.device("cpu")):
        assert (a @ a).dtype == {32: torch.float32, 16: torch.bfloat16}[bits]


def test_a_gpu_without_bf16_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old one")
    with pytest.raises(ValueError, match="an old one has no bf16; use --precision fp32"):
        autocast("bf16", torch.device("cuda"))

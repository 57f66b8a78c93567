"""What a step needs: the formula against what autograd really saves, and the refusal before anything starts."""

from dataclasses import replace

import pytest
import torch

from vitrail import plan
from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import resnet, vit
from vitrail.models.cost import activations, parameters
from vitrail.models.layers import drawing
from vitrail.plan import needed
from vitrail.recipes.demo import demo
from vitrail.runtime.blocks import checkpoint_blocks
from vitrail.tasks.classify import Classify

BASE = vit.Config((64, 64), (8, 8), width=96, depth=4, heads=4, mlp_dim=384, classes=10)
STEM = resnet.Config(blocks=(1, 2), classes=0)


def saved(config, batch=4, again=False):
    """Bytes an image that autograd holds after the forward pass, weights apart, each storage once."""
    model = vit.ViT(config)
    model.init_weights(0)
    task = Classify(model, Preprocessing(config.image_size, (0.5,) * 3, (0.5,) * 3))
    if again:
        checkpoint_blocks(task)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held, sizes = [], {}

    def pack(tensor):
        held.append(tensor)  # or its storage would be another's
        if tensor.untyped_storage().data_ptr() not in own:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images = torch.zeros(batch, 3, *config.image_size, dtype=torch.uint8)
    given = Batch(images=images, targets=torch.zeros(batch, dtype=torch.int64))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), drawing(task, torch.arange(batch)):
        task(given)
    return sum(sizes.values()) / batch


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({}, 0.06), ({"depth": 8}, 0.06), ({"width": 192, "mlp_dim": 768}, 0.06), ({"dropout": 0.1}, 0.06),
        ({"attention_dropout": 0.1}, 0.06), ({"drop_path": 0.1, "layer_scale": 1e-4}, 0.06),
        ({"activation": "swiglu"}, 0.06), ({"qk_norm": True}, 0.06),
        ({"class_token": False, "pool": "avg", "image_size": (96, 128)}, 0.06),
        ({"image_size": (128, 128), "patch_size": (1, 1), "stem": STEM}, 0.35),
    ],
)  # fmt: skip
def test_activations_are_what_autograd_saves(changes, tolerance):
    config = replace(BASE, **changes)
    assert activations(config) == pytest.approx(saved(config), rel=tolerance)


def test_checkpointing_needs_a_fraction():
    deep = replace(BASE, depth=12)
    assert saved(deep, again=True) < activations(deep, again=True) < 0.2 * activations(deep)


@pytest.mark.parametrize(("name", "copies"), [("adamw", 4), ("sgd", 3), ("muon", 4)])
def test_weights_gradients_and_averages_are_counted(name, copies):
    assert needed(BASE, 1, optimizer=name).state == 4 * copies * parameters(BASE)
    assert needed(BASE, 1, optimizer=name, ema=True).state == 4 * (copies + 1) * parameters(BASE)


def test_what_does_not_fit_is_refused_with_the_numbers(monkeypatch):
    need, cpu = needed(demo().model, 128), torch.device("cpu")
    assert 0 < plan.free(cpu) < 2**50
    monkeypatch.setattr(plan, "free", lambda device: need.state + 10 * need.image + 1)
    with pytest.raises(ValueError, match=r"for 128 images at once, but \d+ MiB are free; --micro-batch 10 fits"):
        plan.refuse(demo(), cpu)
    plan.refuse(replace(demo(), micro_batch=10), cpu)
    monkeypatch.setattr(plan, "free", lambda device: need.state)
    with pytest.raises(ValueError, match="choose a smaller model or image size"):
        plan.refuse(demo(), cpu)
    monkeypatch.setattr(plan, "free", lambda device: None)
    plan.refuse(demo(), cpu)
    with pytest.raises(ValueError, match="too large to exist"):
        plan.refuse(replace(demo(), model=vit.Config(channels=1, classes=10, width=10**12, heads=1)), cpu)

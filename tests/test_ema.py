"""The average of the weights against its closed form; the swap, its way back, and the tensors of a checkpoint."""

import copy
import math

import pytest
import torch
from torch import nn

from vitrail.models import vit
from vitrail.optim.ema import Ema


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.frozen = (nn.Parameter(torch.randn(4, 3).double()) for _ in range(2))
        self.frozen.requires_grad_(False)
        self.register_buffer("mean", torch.randn(3).double())
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("derived", torch.zeros(2), persistent=False)

    @torch.no_grad()
    def move(self):
        self.weight.normal_()
        self.mean.normal_()
        self.count.add_(1)


@pytest.mark.parametrize(("decay", "warm"), [(0.9, False), (0.9999, True), (0.6, True), (0.0, False)])
def test_the_average_is_the_closed_form(decay, warm):
    module = Mixed()
    ema = Ema(module, decay, warm)
    seen = [(module.weight.detach().clone(), module.mean.clone())]
    decays = [min(decay, (1 + t) / (10 + t)) if warm else decay for t in range(50)]
    for step in range(50):
        module.move()
        ema.update(step)
        seen.append((module.weight.detach().clone(), module.mean.clone()))
    # Each value weighs (1 - its own d) times all later ones; the first weighs all of them.
    shares = [math.prod(decays), *((1 - d) * math.prod(decays[t + 1 :]) for t, d in enumerate(decays))]
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    for index, name in enumerate(("weight", "mean")):
        expected = sum(share * values[index] for share, values in zip(shares, seen, strict=True))
        torch.testing.assert_close(ema.tensors[name], expected, rtol=0, atol=1e-12)
    assert torch.equal(ema.tensors["frozen"], module.frozen)
    assert ema.tensors["count"] == 50
    assert not any(tensor.requires_grad for tensor in ema.tensors.values())
    assert set(ema.tensors) == set(module.state_dict()) == {"weight", "frozen", "mean", "count"}


@pytest.mark.parametrize(("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_small_steps_are_not_lost_whatever_the_weights_are(dtype, wide):
    module = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.ones_(module.weight)
    ema = Ema(module, 0.9999, warm=False)
    nn.init.constant_(module.weight, 2.0)
    for step in range(100):
        ema.update(step)
    assert ema.tensors["weight"].dtype == wide
    assert float(ema.tensors["weight"]) == pytest.approx(2 - 0.9999**100, rel=1e-6)


def tiny():
    torch.manual_seed(0)
    model = vit.ViT(vit.Config((8, 8), (4, 4), 1, width=16, depth=1, heads=2, mlp_dim=32, classes=3))
    nn.init.normal_(model.head.weight)
    nn.init.normal_(model.pos_embed)
    return model.eval()


def averaged(model):
    """An average that is far from the weights, whose own state is kept."""
    ema = Ema(model, 0.5, warm=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    ema.update(0)
    return ema


@pytest.mark.parametrize("learns", [True, False])
@torch.no_grad()
def test_swapped_is_the_model_with_these_weights_at_another_image_size_too(learns):
    model, images = tiny(), torch.randn(2, 1, 12, 20)
    model.pos_embed.requires_grad_(learns)
    ema = averaged(model)
    other = copy.deepcopy(model)
    other.load_state_dict(ema.tensors)
    before = model(images)
    with ema.swapped():
        inside = model(images)
    assert torch.equal(inside, other(images))
    assert not torch.equal(inside, before)
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_swap_leaves_weights_bit_for_bit_and_gradients_even_after_an_exception(dtype):
    model = tiny().to(dtype)
    ema = averaged(model)
    model(torch.randn(2, 1, 8, 8).to(dtype)).sum().backward()
    with torch.no_grad():
        model.head.weight[0, 0], model.head.weight[0, 1] = torch.nan, -0.0
    before, average = ({n: t.clone() for n, t in d.items()} for d in (model.state_dict(), ema.tensors))
    gradients = [parameter.grad for parameter in model.parameters()]
    with ema.swapped():
        assert torch.equal(model.norm.weight, average["norm.weight"].to(dtype))
    with pytest.raises(KeyError), ema.swapped():
        raise KeyError
    for name, tensor in model.state_dict().items():
        bits = torch.int16 if dtype == torch.bfloat16 else torch.int32
        assert torch.equal(tensor.view(bits), before[name].view(bits)), name
        assert torch.equal(ema.tensors[name], average[name])
    assert all(p.grad is g and p.requires_grad for p, g in zip(model.parameters(), gradients, strict=True))


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=rf"the decay {decay} of the weights' average must lie in \[0, 1\)"):
        Ema(Mixed(), decay)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved | {"mean": torch.zeros(4)}, r"average of mean is \(4,\), the model's is \(3,\)"),
        (lambda saved: {}, "average of the weights has no weight"),
    ],
)
def test_an_average_of_another_model_is_refused_and_changes_nothing(change, message):
    ema = Ema(Mixed(), 0.9)
    before = {name: tensor.clone() for name, tensor in ema.tensors.items()}
    with pytest.raises(ValueError, match=message):
        ema.load(change({name: tensor + 1 for name, tensor in before.items()}))
    assert all(torch.equal(ema.tensors[name], tensor) for name, tensor in before.items())

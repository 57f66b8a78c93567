"""The average of the weights against its closed form; the swap, its way back, and the tensors of a checkpoint."""

import copy
import math

import pytest
import torch
from torch import nn

from vitrail.models import vit
from vitrail.optim.ema import Ema


class Mixed(nn.Module):
    """A weight, a frozen one, a floating buffer, a count, and a buffer that no state_dict has."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight, self.frozen = (nn.Parameter(torch.randn(4, 3, generator=generator).to(dtype)) for _ in range(2))
        self.frozen.requires_grad_(False)
        self.register_buffer("mean", torch.randn(3, generator=generator).to(dtype))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("derived", torch.zeros(2), persistent=False)

    @torch.no_grad()
    def move(self, generator):
        self.weight.copy_(torch.randn(4, 3, generator=generator))
        self.mean.copy_(torch.randn(3, generator=generator))
        self.count.add_(1)


@pytest.mark.parametrize(("decay", "warm"), [(0.9, False), (0.9999, True), (0.6, True), (0.0, False)])
def test_the_average_is_the_closed_form(decay, warm):
    module, generator = Mixed(), torch.Generator().manual_seed(1)
    ema = Ema(module, decay, warm)
    seen = [(module.weight.detach().clone(), module.mean.clone())]
    decays = [min(decay, (1 + t) / (10 + t)) if warm else decay for t in range(50)]
    for step in range(50):
        module.move(generator)
        ema.update(step)
        seen.append((module.weight.detach().clone(), module.mean.clone()))
    # Each value weighs (1 - its own d) times all later ones; the first weighs all of them.
    shares = [math.prod(decays), *((1 - d) * math.prod(decays[t + 1 :]) for t, d in enumerate(decays))]
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    for index, name in enumerate(("weight", "mean")):
        expected = sum(share * values[index] for share, values in zip(shares, seen, strict=True))
        difference = float((ema.tensors[name] - expected).abs().max())
        print(f"decay {decay}, warm {warm}, {name}: {difference:.1e} after 50 steps")
        assert difference < 1e-12


def test_what_does_not_change_stays_equal_and_counts_are_copied():
    module, generator = Mixed(torch.bfloat16), torch.Generator().manual_seed(1)
    ema = Ema(module, 0.99)
    for step in range(20):
        module.move(generator)
        ema.update(step)
    assert torch.equal(ema.tensors["frozen"], module.frozen.float())
    assert ema.tensors["count"] == 20
    assert not any(tensor.requires_grad for tensor in ema.tensors.values())
    assert set(ema.tensors) == set(module.state_dict()) == {"weight", "frozen", "mean", "count"}


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)  # fmt: skip
def test_small_steps_are_not_lost_whatever_the_weights_are(dtype, wide):
    module = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.ones_(module.weight)
    ema = Ema(module, 0.9999, warm=False)
    nn.init.constant_(module.weight, 2.0)
    for step in range(100):
        ema.update(step)
    assert ema.tensors["weight"].dtype == wide
    assert float(ema.tensors["weight"]) == pytest.approx(2 - 0.9999**100, rel=1e-6)


def test_the_first_steps_of_a_warm_average_forget_the_initial_weights():
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(module.weight)
    warm, cold = Ema(module, 0.9999), Ema(module, 0.9999, warm=False)
    nn.init.zeros_(module.weight)
    for step in range(10):
        warm.update(step)
        cold.update(step)
    assert float(warm.tensors["weight"]) == pytest.approx(1 / math.comb(19, 9))  # 1/10 2/11 ... 10/19
    assert float(cold.tensors["weight"]) == pytest.approx(0.9999**10)


def tiny():
    torch.manual_seed(0)
    config = vit.Config((8, 8), (4, 4), 1, width=16, depth=1, heads=2, mlp_dim=32, classes=3)
    model = vit.ViT(config)
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
@pytest.mark.parametrize("size", [(8, 8), (12, 20)])
def test_swapped_is_the_model_with_these_weights_at_any_image_size(size, learns):
    model, images = tiny(), torch.randn(2, 1, *size)
    model.pos_embed.requires_grad_(learns)
    ema = averaged(model)
    other = copy.deepcopy(model)
    other.load_state_dict(ema.tensors)
    with torch.no_grad():
        before = model(images)  # fills the cache of resampled positions
        with ema.swapped():
            inside = model(images)
        after = model(images)
        assert torch.equal(inside, other(images))
    assert not torch.equal(inside, before)
    assert torch.equal(after, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_weights_come_back_bit_for_bit_even_after_an_exception(dtype):
    model = tiny().to(dtype)
    ema = averaged(model)
    with torch.no_grad():
        model.head.weight[0, 0], model.head.weight[0, 1] = torch.nan, -0.0
    before, average = ({n: t.clone() for n, t in d.items()} for d in (model.state_dict(), ema.tensors))
    with ema.swapped():
        assert torch.equal(model.norm.weight, average["norm.weight"].to(dtype))
    with pytest.raises(KeyError), ema.swapped():
        raise KeyError
    for name, tensor in model.state_dict().items():
        bits = torch.int16 if dtype == torch.bfloat16 else torch.int32
        assert torch.equal(tensor.view(bits), before[name].view(bits)), name
        assert torch.equal(ema.tensors[name], average[name])


def test_gradients_and_the_optimiser_are_not_touched_by_a_swap():
    model = tiny()
    ema, optimizer = averaged(model), torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    with ema.swapped():
        pass
    assert all(p.grad is g and p.requires_grad for p, g in zip(model.parameters(), gradients, strict=True))
    before = model.head.bias.detach().clone()
    optimizer.step()
    assert torch.equal(model.head.bias, before - 0.1 * model.head.bias.grad)


def test_a_loaded_average_goes_on_as_if_it_had_not_stopped():
    one, two = Mixed(), Mixed()
    first, second = Ema(one, 0.9), Ema(two, 0.9)
    generator = torch.Generator().manual_seed(1)
    for step in range(10):
        one.move(generator)
        first.update(step)
        if step == 4:
            second.load({name: tensor.clone() for name, tensor in first.tensors.items()})
        if step > 4:
            two.load_state_dict(one.state_dict())
            second.update(step)
    assert all(torch.equal(second.tensors[name], tensor) for name, tensor in first.tensors.items())


def test_errors_are_sentences_and_change_nothing():
    with pytest.raises(ValueError, match=r"the decay 1.0 of the weights' average must lie in \[0, 1\)"):
        Ema(Mixed(), 1.0)
    with pytest.raises(ValueError, match="the decay nan"):
        Ema(Mixed(), float("nan"))
    ema = Ema(Mixed(), 0.9)
    before = {name: tensor.clone() for name, tensor in ema.tensors.items()}
    saved = {name: tensor + 1 for name, tensor in before.items()}
    with pytest.raises(ValueError, match=r"average of mean is \(4,\), the model's is \(3,\): it is of another model"):
        ema.load(saved | {"mean": torch.zeros(4)})
    with pytest.raises(ValueError, match="average of the weights has no weight: it is of another model, or of none"):
        ema.load({})
    assert all(torch.equal(ema.tensors[name], tensor) for name, tensor in before.items())

"""Dropout and stochastic depth by the image's key: rates, independence, and what they do not depend on; masked
attention; no pass leaves anything behind, whoever else runs one."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from reference import perturb

from vitrail.data import order
from vitrail.models.layers import Dropout, DropPath, drawing
from vitrail.models.vit import Attention, Block, Config, ViT

KEYS = torch.from_numpy(order.sample_seeds(3, 512, 0).view(np.int64))
SMALL = {"image_size": (32, 32), "patch_size": (8, 8), "width": 32, "depth": 2, "heads": 4, "mlp_dim": 64, "classes": 5}


def dropped(rate, shape=(40, 25), keys=KEYS, layer=Dropout):
    """Where a layer in a model of several drops what is 1."""
    model = torch.nn.ModuleDict({"a": layer(rate), "b": layer(rate)}).train()
    with drawing(model, keys):
        return [model[name](torch.ones(len(keys), *shape)) for name in "ab"]


@pytest.mark.parametrize("layer", [Dropout, DropPath])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_elements_are_kept_at_the_rate_and_scaled_to_the_same_mean(layer, rate):
    found = torch.cat(dropped(rate, keys=KEYS.repeat(8) + torch.arange(8).repeat_interleave(512), layer=layer))
    assert found.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
    count = found.numel() if layer is Dropout else len(found)
    assert float((found > 0).double().mean()) == pytest.approx(1 - rate, abs=4 * (rate * (1 - rate) / count) ** 0.5)


def test_draws_are_independent_of_one_another():
    """Correlations between images, places and layers are those of independent coins."""
    first, second = ((found > 0).double().flatten(1) - 0.5 for found in dropped(0.5))
    images, places = first.shape
    for name, product, count in (
        ("layers", first * second, images * places),
        ("images", first[1:] * first[:-1], (images - 1) * places),
        ("places", first[:, 1:] * first[:, :-1], images * (places - 1)),
        ("rows", first[:, 25:] * first[:, :-25], images * (places - 25)),
    ):
        assert abs(float(product.mean()) * 4) < 4 / count**0.5, name
    assert float((first.mean(1) * 2).std()) == pytest.approx(places**-0.5, rel=0.15)  # of an image
    assert float((first.mean(0) * 2).std()) == pytest.approx(images**-0.5, rel=0.15)  # of a place


def test_keys_that_differ_in_any_bit_draw_otherwise():
    base = int(KEYS[0])
    keys = torch.tensor([base, *(base ^ (1 << bit) for bit in range(63))])
    found = dropped(0.5, (400,), keys)[0]
    assert len({tuple(row) for row in (found > 0).tolist()}) == 64


@pytest.mark.parametrize("layer", [Dropout, DropPath])
def test_without_keys_torchs_generator_draws_and_evaluation_draws_nothing(layer):
    module, x = layer(0.5).train(), torch.ones(64, 8, 8)
    torch.manual_seed(0)
    first = module(x)
    torch.manual_seed(0)
    assert torch.equal(first, module(x))
    assert not torch.equal(first, module(x))
    assert torch.equal(module.eval()(x), x)
    with drawing(module, KEYS[:64]):
        assert torch.equal(module(x), x)
    with pytest.raises(MemoryError), drawing(module, KEYS):
        raise MemoryError
    assert module.drawn is None  # even where the step failed


@torch.no_grad()
def test_masked_attention_is_attention_among_the_tokens_that_are_left():
    torch.manual_seed(0)
    config = Config(**SMALL)
    block = perturb(Block(config, 0.0, None), dtype=torch.float32)
    z, kept = torch.randn(3, 9, 32), torch.tensor([0, 2, 3, 7])
    mask = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    mask[..., kept] = True
    assert torch.allclose(block(z, mask)[:, kept], block(z[:, kept]), atol=1e-6)
    assert torch.equal(block(z, torch.ones(1, 1, 1, 9, dtype=torch.bool)), block(z, torch.ones_like(mask)))
    # Two images in one sequence, neither of which sees the other.
    packed = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    packed[..., :4, :4] = packed[..., 4:, 4:] = True
    apart = torch.cat([block(z[:, :4]), block(z[:, 4:])], 1)
    assert torch.allclose(block(z, packed), apart, atol=1e-6)


@torch.no_grad()
def test_attention_dropout_drops_probabilities_and_its_mean_is_attention():
    torch.manual_seed(0)
    plain = perturb(Attention(Config(**SMALL), None))
    noisy = Attention(Config(**SMALL, attention_dropout=0.3), None)
    noisy.load_state_dict(plain.state_dict())
    z = torch.randn(1, 9, 32).double()
    plain, noisy = plain.double(), noisy.double().train()
    with drawing(noisy, torch.arange(20_000)):
        mean = noisy(z.expand(20_000, -1, -1)).mean(0)
    assert float((mean - plain(z)[0]).norm() / plain(z).norm()) < 0.02
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    mask[..., 5:] = False
    with drawing(noisy, torch.arange(20_000)):
        mean = noisy(z.expand(20_000, -1, -1), mask).mean(0)
    assert float((mean - plain(z, mask)[0]).norm() / plain(z, mask).norm()) < 0.02


def test_threads_may_share_one_model_at_different_sizes():
    model = perturb(ViT(Config(**SMALL)), dtype=torch.float32).eval()
    images = [torch.randn(1, 3, *size) for size in [(32, 32), (48, 32), (24, 64), (80, 40)]] * 50
    with torch.no_grad():
        expected = [model(image) for image in images]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(torch.no_grad()(model), images))
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_a_pass_leaves_nothing_in_the_model(positions):
    """No table of positions of other weights, another size or another thread can be read by mistake."""
    model = ViT(Config(**SMALL, positions=positions)).eval()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with torch.inference_mode():
        model(torch.randn(1, 3, 48, 40))
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert all(vars(module)[key] is value for key, value in before[name].items()), name

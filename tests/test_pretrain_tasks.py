"""Masked patches and MAE against their papers' equations in NumPy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import perturb
from scipy.special import log_softmax

from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import vit
from vitrail.models.positions import sincos
from vitrail.tasks.mae import MaeConfig
from vitrail.tasks.patches import PatchesConfig, corrupt
from vitrail.tasks.pretrain import cells, hidden

MODEL = vit.Config((16, 24), (4, 6), 3, 16, 2, 2, 32, 0, registers=1)
MANY = 2000


def task(config, model=MODEL):
    how = Preprocessing(model.image_size, (0.4,) * model.channels, (0.3,) * model.channels)
    return perturb(config.task(model.build("cpu"), how, ()))


def batch(count=6, channels=3, seed=0, size=(16, 24)):
    draw = np.random.default_rng(seed)
    images = torch.from_numpy(draw.integers(0, 256, (count, channels, *size), np.uint8))
    return Batch(images=images, keys=torch.from_numpy(draw.integers(-(2**63), 2**63, count)))


def patches_of(images, height=4, width=6):
    """(B, N, h, w, C), patch by patch."""
    rows, columns = images.shape[2] // height, images.shape[3] // width
    found = [
        images[:, :, r * height : (r + 1) * height, c * width : (c + 1) * width].transpose(0, 2, 3, 1)
        for r in range(rows)
        for c in range(columns)
    ]
    return np.stack(found, 1)


def watched(module, function):
    """What a module was given, and gave, in one call of the function."""
    seen = []
    with module.register_forward_hook(lambda _, given, gave: seen.append((given[0].detach(), gave.detach()))):
        found = function()
    return found, seen


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_patchs_colour_has_three_bits_a_channel(channels):
    given = batch(channels=channels)
    given["images"][0] = 255
    given["images"][1] = 0
    found = task(PatchesConfig(), replace(MODEL, channels=channels)).targets(given["images"]).numpy()
    means = patches_of(given["images"].numpy()).astype(np.float64).mean((2, 3))
    levels = np.minimum(np.floor(means / 255 * 8), 7).astype(int)
    if channels <= 3:
        levels = sum(levels[..., [c]] * 8 ** (channels - 1 - c) for c in range(channels))
    assert found.shape == (6, 16, 1 if channels <= 3 else channels)
    np.testing.assert_array_equal(found, levels)
    assert (found[0].max(), found[1].max()) == (8**channels - 1 if channels <= 3 else 7, 0)


def test_a_colour_is_numbered_red_first():
    images = torch.zeros(1, 3, 16, 24, dtype=torch.uint8)
    images[0, 0], images[0, 1], images[0, 2] = 255 * 5 // 8 + 1, 255 * 3 // 8 + 1, 255 * 2 // 8 + 1
    assert task(PatchesConfig()).targets(images).unique().tolist() == [5 * 64 + 3 * 8 + 2]


def corrupted(count=16, fraction=0.5, images=MANY):
    """(places, what stands there afterwards: -1 a mask, else a patch's number) of many images."""
    keys = torch.arange(images) * 7919
    places = hidden(keys, "corrupted", count, round(count * fraction))[:, : round(count * fraction)]
    numbers = torch.arange(count, dtype=torch.float64).expand(images, count)[..., None].contiguous()
    found = corrupt(numbers, places, keys, torch.tensor([-1.0], dtype=torch.float64))[..., 0].long()
    untouched = torch.ones(images, count, dtype=torch.bool).scatter_(1, places, False)
    assert torch.equal(found[untouched], numbers[..., 0].long()[untouched])
    return places, found.gather(1, places)


@pytest.mark.parametrize("count", [2, 9, 16])
def test_half_of_the_patches_are_corrupted_in_the_papers_three_ways(count):
    places, found = corrupted(count)
    assert places.shape == (MANY, round(count / 2))
    assert (places.diff(dim=1) > 0).all()
    for often, probability in (((found == -1), 0.8), ((found == places), 0.1), ((found >= 0) & (found != places), 0.1)):
        bound = 4.5 * math.sqrt(probability * (1 - probability) / found.numel())
        assert float(often.double().mean()) == pytest.approx(probability, abs=bound)
    every = np.bincount(places.flatten(), minlength=count) / MANY
    assert np.abs(every - places.shape[1] / count).max() < 4.5 * math.sqrt(0.25 / MANY)


def test_another_patch_is_any_of_the_others_as_often():
    places, found = corrupted(9, images=20_000)
    swapped = (found >= 0) & (found != places)
    apart = ((found - places) % 9)[swapped]
    counts = np.bincount(apart, minlength=9)
    assert counts[0] == 0
    assert np.abs(counts[1:] / counts.sum() - 1 / 8).max() < 4.5 * math.sqrt(1 / 8 / counts.sum())


def test_which_patches_is_a_function_of_the_key_alone():
    keys = torch.arange(40) - 20
    found = hidden(keys, "masked", 16, 12)
    assert len(found.unique(dim=0)) == 40
    assert torch.equal(hidden(keys.flip(0), "masked", 16, 12).flip(0), found)
    assert torch.equal(torch.cat([hidden(key[None], "masked", 16, 12) for key in keys]), found)
    assert not torch.equal(hidden(keys, "corrupted", 16, 12), found)
    assert torch.equal(found.sort().values, torch.arange(16).expand(40, 16))
    assert (found[:, :12].diff(dim=1) > 0).all()
    assert (found[:, 12:].diff(dim=1) > 0).all()


def test_positions_are_added_after_the_corruption():
    one, given = task(PatchesConfig()), batch()
    _, seen = watched(one.model.blocks[0], lambda: one(given))
    read = seen[0][0][:, MODEL.prefix :] - one.model.position_table((4, 4))[:, MODEL.prefix :]
    x = one.model.patch_embed(one.input(given["images"])).flatten(2).transpose(1, 2)
    places = hidden(given["keys"], "corrupted", 16, 8)[:, :8]
    for image in range(6):
        for place in range(16):
            own = (read[image, place] - x[image, place]).abs().max() < 1e-10
            masked = (read[image, place] - one.extra.mask_token).abs().max() < 1e-10
            other = ((read[image, place] - x[image]).abs().amax(1) < 1e-10).any()
            assert own if place not in places[image] else (own or masked or other)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_masked_patches_loss_is_the_cross_entropy_of_the_corrupted_ones(channels):
    one, given = task(PatchesConfig(), replace(MODEL, channels=channels)), batch(channels=channels)
    (loss, metrics), seen = watched(one.model.norm, lambda: one(given))
    tokens = seen[0][1].numpy()[:, MODEL.prefix :]
    places = hidden(given["keys"], "corrupted", 16, 8)[:, :8].numpy()
    colours = one.targets(given["images"]).numpy()
    weight, bias = (p.detach().numpy() for p in (one.extra.leave.weight, one.extra.leave.bias))
    losses, right = [], []
    for image in range(6):
        for place in places[image]:
            rows = (weight @ tokens[image, place] + bias).reshape(colours.shape[2], -1)
            chosen = colours[image, place]
            losses += (-log_softmax(rows, 1)[np.arange(len(chosen)), chosen]).tolist()
            right += (rows.argmax(1) == chosen).tolist()
    assert float(loss.detach()) == pytest.approx(np.mean(losses), abs=1e-10)
    assert float(metrics["loss"]) == float(loss.detach())
    assert float(metrics["bits"]) == pytest.approx(np.mean(losses) / np.log(2), abs=1e-10)
    assert float(metrics["right"]) == pytest.approx(np.mean(right), abs=1e-10)


def test_of_corrupted_patches_that_say_nothing_nine_bits_are_unknown():
    one = task(PatchesConfig())
    torch.nn.init.zeros_(one.extra.leave.weight)
    torch.nn.init.zeros_(one.extra.leave.bias)
    assert float(one(batch())[1]["bits"]) == pytest.approx(9, abs=1e-10)


def test_cells_are_the_patches_row_by_row():
    images = batch()["images"]
    np.testing.assert_array_equal(cells(images, (4, 6)).numpy(), patches_of(images.numpy()))


@pytest.mark.parametrize("masked", [0.75, 0.5, 0.1])
def test_the_encoder_never_sees_hidden_patches(masked):
    one, given = task(MaeConfig(masked=masked, depth=1, width=32)), batch()
    count = round(16 * masked)
    order = hidden(given["keys"], "masked", 16, count)
    changed = given["images"].clone()
    for image, places in enumerate(order[:, :count].tolist()):
        for place in places:
            r, c = divmod(place, 4)
            changed[image, :, r * 4 : r * 4 + 4, c * 6 : c * 6 + 6] = (
                255 - changed[image, :, r * 4 : r * 4 + 4, c * 6 : c * 6 + 6]
            )
    (loss, _), before = watched(one.model.norm, lambda: one(given))
    (other, _), after = watched(one.model.norm, lambda: one(given.plus(images=changed)))
    assert before[0][1].shape == (6, MODEL.prefix + 16 - count, 16)
    assert torch.equal(before[0][1], after[0][1])
    assert float(loss.detach()) != float(other.detach())


@pytest.mark.parametrize("normalised", [True, False])
def test_mae_paints_normalised_pixels_of_the_hidden_patches(normalised):
    one, given = task(MaeConfig(depth=1, width=32, normalised=normalised)), batch()
    (loss, metrics), seen = watched(one.extra, lambda: one(given))
    painted = seen[0][1].numpy()
    places = hidden(given["keys"], "masked", 16, 12)[:, :12].numpy()
    pixels = patches_of((given["images"].double().numpy() / 255 - 0.4) / 0.3).reshape(6, 16, -1)
    wanted = pixels[np.arange(6)[:, None], places]
    if normalised:
        size = wanted.shape[-1]
        mean = wanted.sum(-1, keepdims=True) / size
        variance = ((wanted - mean) ** 2).sum(-1, keepdims=True) / (size - 1)
        wanted = (wanted - mean) / np.sqrt(variance + 1e-6)
    squares = ((painted - wanted) ** 2).mean()
    explained = 1 - squares / ((wanted - wanted.mean(-1, keepdims=True)) ** 2).mean()
    assert float(loss.detach()) == pytest.approx(squares, abs=1e-10)
    assert float(metrics["loss"]) == float(loss.detach())
    assert float(metrics["explained"]) == pytest.approx(explained, abs=1e-10)


def test_explained_is_0_of_a_patchs_mean_and_1_of_its_pixels():
    one, given = task(MaeConfig(depth=1, width=32)), batch()
    one.extra.forward = lambda tokens, order, count, grid: torch.zeros(6, count, 72, dtype=torch.float64)
    assert float(one(given)[1]["explained"]) == pytest.approx(0, abs=1e-6)
    every = one.targets(cells(one.input(given["images"]), (4, 6)))
    right = every[torch.arange(6)[:, None], hidden(given["keys"], "masked", 16, 12)[:, :12]]
    one.extra.forward = lambda tokens, order, count, grid: right
    assert float(one(given)[1]["explained"]) == 1
    given["images"][:] = 128  # patches without any variance
    assert math.isfinite(float(one(given)[0].detach()))


def test_what_is_painted_belongs_to_the_hidden_places():
    """A decoder without weights between its entrance and its end gives each place its own position."""
    one, given = task(MaeConfig(depth=1, width=32)), batch()
    one.extra.blocks = torch.nn.Sequential()
    painted, order, count, _ = one.painted(one.input(given["images"]), given["keys"])
    assert torch.equal(order, hidden(given["keys"], "masked", 16, 12))
    with torch.no_grad():
        z = one.extra.mask_token + sincos((4, 4), 32, True, torch.device("cpu"))[order[:, :count]]
        expected = one.extra.leave(one.extra.norm(z))
    torch.testing.assert_close(painted, expected, rtol=0, atol=1e-10)


def test_the_decoder_reads_visible_tokens_in_their_own_places():
    """Whichever the order in which the encoder has them: tokens and places turned together paint the same."""
    one, given = task(MaeConfig(depth=2, width=32)), batch()
    order, grid = hidden(given["keys"], "masked", 16, 12), (4, 4)
    tokens = torch.randn(6, MODEL.prefix + 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = torch.cat([tokens[:, : MODEL.prefix], tokens[:, MODEL.prefix :].flip(1)], 1)
    both = torch.cat([order[:, :12], order[:, 12:].flip(1)], 1)
    found = one.extra(tokens, order, 12, grid)
    torch.testing.assert_close(one.extra(turned, both, 12, grid), found, rtol=0, atol=1e-10)
    assert not torch.allclose(one.extra(turned, order, 12, grid), found)

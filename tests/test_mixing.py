"""Mixup and CutMix of pairs against torchvision's and timm's, and the laws of a batch that may be split."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, ks_2samp, kstest
from timm.data.mixup import cutmix_bbox_and_lam
from torchvision.transforms import v2

from vitrail.data.images.augment import Augment
from vitrail.data.images.mixing import draws, mix
from vitrail.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, normalise
from vitrail.data.order import sample_seeds

BOTH = Augment(mixup=0.8, cutmix=1.0)
SIZE = (24, 32)


def batch(count):
    """Images of bytes, and one-hot targets."""
    numbers = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8, generator=numbers)
    return images, torch.eye(5)[torch.randint(0, 5, (count,), generator=numbers)]


def drawn(count, how=BOTH, seed=0):
    return draws(sample_seeds(0, count, seed), how, SIZE)


def area(box):
    return ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).double()


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_mixup_of_a_pair_is_torchvisions(lam):
    images, targets = batch(2)
    theirs = v2.MixUp(num_classes=5)
    theirs.make_params = lambda _: {"lam": lam}
    expected = theirs(images.float(), targets)
    found = mix(images, targets, torch.tensor([lam, lam]), torch.zeros(2, 4, dtype=torch.int64))
    assert torch.allclose(found[0], expected[0], atol=1e-4)
    assert torch.allclose(found[1], expected[1], atol=1e-6)


@pytest.mark.parametrize("box", [(0, 0, 24, 32), (3, 5, 4, 30), (20, 0, 24, 1), (7, 7, 7, 9)])
def test_cutmix_of_a_pair_is_torchvisions(box):
    images, targets = batch(2)
    top, left, bottom, right = box
    lam = 1 - (bottom - top) * (right - left) / (24 * 32)
    theirs = v2.CutMix(num_classes=5)
    theirs.make_params = lambda _: {"box": (left, top, right, bottom), "lam_adjusted": lam}
    expected = theirs(images, targets)
    found = mix(images, targets, torch.tensor([lam, lam]), torch.tensor([box, box]))
    assert torch.equal(found[0], expected[0].float())
    assert torch.allclose(found[1], expected[1], atol=1e-6)


@given(st.integers(0, 40), st.integers(0, 20), st.integers(0, 2**64 - 1))
def test_a_batch_split_at_an_even_place_is_the_same(count, pairs, seed):
    images, targets = batch(count)
    keys, cut = sample_seeds(3, count, seed) if count else np.zeros(0, np.uint64), min(2 * pairs, count // 2 * 2)
    whole = mix(images, targets, *draws(keys, BOTH, SIZE))
    parts = [mix(images[p], targets[p], *draws(keys[p], BOTH, SIZE)) for p in (slice(0, cut), slice(cut, None))]
    for found, one, other in zip(whole, *parts, strict=True):
        assert torch.equal(found, torch.cat([one, other]))


def test_a_key_draws_the_same_for_ever():
    lam, box = draws(np.array([1, 0, 2, 0, 3, 0], np.uint64), BOTH, SIZE)
    assert lam[::2].tolist() == pytest.approx([0.9248197, 0.5308318, 0.9427083], abs=1e-6)
    assert box[::2].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 5, 4, 16]]


@pytest.mark.parametrize("how", [Augment(mixup=0.2), BOTH, Augment(cutmix=0.5, mix=0.3)])
def test_what_a_pair_has_in_common(how):
    lam, box = drawn(2000, how)
    assert lam.dtype == torch.float32
    assert all(torch.equal(values[::2], values[1::2]) for values in (lam, box))
    assert ((lam >= 0) & (lam <= 1)).all()
    assert ((box >= 0) & (box <= torch.tensor([24, 32, 24, 32]))).all()
    cut = area(box) > 0
    assert torch.equal(lam[cut], (1 - area(box[cut]) / (24 * 32)).float())
    images, targets = mix(*batch(200), lam[:200], box[:200])
    assert torch.allclose(targets.sum(1), torch.ones(200), atol=1e-6)
    assert 0 <= images.min() <= images.max() <= 255


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_mixups_fraction_is_beta(alpha):
    lam, box = drawn(6000, Augment(mixup=alpha), 2)
    assert kstest(lam[::2].double(), beta(alpha, alpha).cdf).pvalue > 1e-3
    assert not box.any()


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmixs_boxes_are_distributed_as_timms(alpha):
    lam, box = (values[::2].numpy() for values in drawn(6000, Augment(cutmix=alpha), 3))
    np.random.seed(0)  # timm draws from it
    theirs = [cutmix_bbox_and_lam(SIZE, lam) for lam in np.random.default_rng(0).beta(alpha, alpha, 3000)]
    assert ks_2samp(lam, [lam for _, lam in theirs]).pvalue > 1e-3
    for place, timms_place in enumerate([0, 2, 1, 3]):  # timm: yl, yh, xl, xh
        assert ks_2samp(box[:, place], [where[timms_place] for where, _ in theirs]).pvalue > 1e-3


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_last_odd_sample_is_not_mixed_nor_is_anything_without_either(count):
    images, targets = batch(count)
    lam, box = drawn(count)
    found = mix(images, targets, lam, box)
    assert (lam[: count // 2 * 2] < 1).all()
    if count % 2:
        assert torch.equal(found[0][-1], images[-1].float())
        assert torch.equal(found[1][-1], targets[-1])
    same = mix(images, targets, *drawn(count, Augment()))
    assert torch.equal(same[0], images.float())
    assert torch.equal(same[1], targets)


def test_mixing_bytes_or_normalised_images_is_the_same_in_float32_or_wider():
    (images, targets), how = batch(40), Preprocessing(SIZE, IMAGENET_MEAN, IMAGENET_STD)
    of_bytes = mix(images, targets, *drawn(40))[0]
    normal = mix(normalise(images, how, torch.float32), targets, *drawn(40))[0]
    assert torch.allclose(normalise(of_bytes, how, torch.float32), normal, atol=1e-5)
    assert mix(images.bfloat16(), targets, *drawn(40))[0].dtype == torch.float32


def test_the_device_is_never_waited_for():
    """On a device without memory, code that reads a value fails."""
    images, targets, lam, box = (values.to("meta") for values in (*batch(6), *drawn(6)))
    assert [values.shape for values in mix(images, targets, lam, box)] == [images.shape, targets.shape]

"""Maps of a trained ViT beside captum's integrated gradients, where it is known which patch decides.

Those know the pixels and nothing of attention, so that the two agree only where both are right about the model.
"""

import pytest
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients

from vitrail.explain.relevance import relevance
from vitrail.models import vit

CLASSES, SIDE, PATCH = 4, 4, 4


def examples(count, patterns, draw, blank=0):
    """(images, classes, places): noise but for one patch, which has the pattern of the class; in the first `blank` no
    patch has one."""
    classes = torch.randint(CLASSES, (count,), generator=draw)
    places = torch.randint(SIDE**2, (count,), generator=draw)
    patches = torch.randn(count, SIDE**2, PATCH**2, generator=draw)
    shown = torch.arange(blank, count)
    patches[shown, places[shown]] = 2 * patterns[classes[shown]]
    grid = patches.view(count, SIDE, SIDE, PATCH, PATCH)
    return grid.transpose(2, 3).reshape(count, 1, SIDE * PATCH, SIDE * PATCH), classes, places


@pytest.fixture(scope="module")
def trained():
    """(model, images that it has not seen, classes, places). Each logit says by itself whether its pattern is there:
    after softmax the other three logits would tell the class as well, and then the map of its own need not."""
    draw = torch.Generator().manual_seed(0)
    patterns = torch.randn(CLASSES, PATCH**2, generator=draw).sign()
    config = vit.Config((SIDE * PATCH,) * 2, (PATCH,) * 2, 1, 32, 2, 2, 64, CLASSES, pool="avg", class_token=False)
    model, steps = config.build("cpu"), 250
    model.init_weights(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.1)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.2)
    for _ in range(steps):
        images, classes, _ = examples(96, patterns, draw, blank=32)
        wanted = F.one_hot(classes, CLASSES).float()
        wanted[:32] = 0
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(images), wanted).backward()
        optimizer.step()
        plan.step()
    return model.eval(), *examples(200, patterns, draw)


def hits(maps, places):
    """The fraction of images whose highest patch is the planted one; by chance a sixteenth."""
    return float((maps.flatten(1).argmax(1) == places).float().mean())


def test_the_model_has_learned_it(trained):
    model, images, classes, _ = trained
    with torch.no_grad():
        assert (model(images).argmax(1) == classes).float().mean() > 0.95


@pytest.mark.parametrize("method", ["gradient", "legrad"])
def test_maps_find_the_patch_that_integrated_gradients_find(trained, method):
    """Over seeds 0 to 9 of data and weights integrated gradients (from zeros, the images' mean) and gradient-weighted
    attention found it in all of 200 images, LeGrad in 94.5 % or more. It is no law of these methods: of two of four
    models with a [class] token gradient-weighted attention found 72 % and 74 %, LeGrad 67.5 % and 69.5 %, integrated
    gradients all; one of them knew a class while [class] attended to its pattern with a weight of 0.005."""
    model, images, classes, places = trained
    pixels = IntegratedGradients(model).attribute(images, target=classes, n_steps=16, internal_batch_size=800)
    theirs = F.avg_pool2d(pixels.abs().sum(1), PATCH)
    found = relevance(model, images, method, classes[:, None])[:, 0]
    assert hits(theirs, places) >= 0.9
    assert hits(found, places) >= 0.85
    assert hits(found, theirs.flatten(1).argmax(1)) >= 0.85
    shuffled = found.flatten(1)[:, torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(0))]
    assert hits(shuffled, places) < 0.3
    assert hits(found.roll(1, 0), places) < 0.2  # of another image
    assert hits(found.mT, places) < 0.5  # rows for columns: four patches stay where they are

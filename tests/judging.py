"""Images, tasks and evaluators for the tests of what is judged by features."""

from functools import partial

import numpy as np
import torch

from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.loader import Images
from vitrail.data.sources.source import Arrays
from vitrail.evaluate import Validation
from vitrail.evaluate.evaluator import evaluating, judge
from vitrail.models import vit
from vitrail.tasks import Classify

HOW = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)
CONFIG = vit.Config((8, 8), (4, 4), 3, 16, 3, 2, 32, 3)


def cloud(count, width, classes=3, seed=0, noise=1.0):
    draw = np.random.default_rng(seed)
    y = np.arange(count) % classes
    centres = np.random.default_rng(99).standard_normal((classes, width))
    return (centres[y] + noise * draw.standard_normal((count, width))).astype(np.float32), y


def source(count, seed=0, classes=3, name="noise", noise=120):
    """Images of noise around the grey of their class."""
    draw, y = np.random.default_rng(seed), np.arange(count) % classes
    images = draw.integers(0, noise, (count, 8, 8, 3)) + 40 * y[:, None, None, None]
    return Arrays(images.astype(np.uint8), y, tuple("abcdef"[:classes]), name)


def task(config=CONFIG):
    torch.manual_seed(1)
    model = config.build("cpu")
    torch.nn.init.normal_(model.head.weight)
    return Classify(model, HOW, class_names=("a", "b", "c"))


def judged(evaluator, owner=None, images=None, train=None, **more):
    owner, images = owner or task(), images or source(60)
    collate = partial(owner.config.collate, source=images)
    with evaluating(owner):
        return judge([evaluator], owner, Validation(images, HOW, collate, 16, train=train, **more))


def samples(images):
    return [*map(Images(images, HOW).sample, range(len(images)))]

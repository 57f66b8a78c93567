"""Robustness: the mean accuracy on corrupted images, each corrupted by its own number, whatever the batches."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch

from vitrail.batch import Batch
from vitrail.config import dump, parse
from vitrail.data.images.corrupt import OURS, corrupt
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.source import Example
from vitrail.evaluate import Accuracy, Evaluator, Robustness, Validation
from vitrail.evaluate.evaluator import judge
from vitrail.tasks import ClassifyConfig

KINDS, STRENGTHS = ("contrast", "impulse_noise", "brightness"), (1, 3, 5)


@dataclass
class Stripes:
    """Images of two classes, dark and bright, with stripes; gone: those that cannot be read; unlabelled."""

    channels: int = 3
    length: int = 43
    targets: str = "class"
    gone: tuple[int, ...] = ()
    unlabelled: tuple[int, ...] = ()
    class_names = "dark", "bright"

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.gone:
            raise ValueError(f"{self.name(index)} is cut short")
        return Example(self.pixels(index), self.target(index), self.name(index))

    def pixels(self, index):
        level = 60 + 3 * index + 40 * np.sin(np.arange(16) + index)
        return np.repeat(np.tile(level.clip(0, 255).astype(np.uint8), (16, 1))[..., None], self.channels, 2)

    def target(self, index):
        return None if index in self.unlabelled else (index > 20,) if self.targets == "classes" else int(index > 20)

    def name(self, index):
        return f"stripes[{index}]"


class Brightness:
    """Bright is what has many bright pixels: contrast, noise and brightness mislead it."""

    def predict(self, batch):
        bright = (batch["images"] > 120).float().mean((1, 2, 3))
        logits = torch.stack((0.5 - bright, bright - 0.5), 1)
        losses = torch.zeros(len(batch), dtype=torch.float64)
        return {"features": logits, "logits": logits, "probabilities": logits.softmax(1), "losses": losses}


def data(source, batch=8, **more):
    how = Preprocessing((16, 16), (0.5,) * source.channels, (0.5,) * source.channels)
    return Validation(source, how, partial(ClassifyConfig().collate, source=source), batch, **more)


def found(source, batch=8, how=None, **more):
    return dict((how or Robustness(KINDS, STRENGTHS, seed=3)).run(Brightness(), data(source, batch, **more)))


def by_hand(source, numbers):
    images = torch.from_numpy(np.stack([source.pixels(i) for i in numbers])).permute(0, 3, 1, 2).contiguous()
    targets = torch.tensor([source.target(i) for i in numbers])

    def right(images):
        return float((Brightness().predict(Batch(images=images))["logits"].argmax(1) == targets).double().mean())

    kinds = {}
    for kind in KINDS:
        kinds[kind] = np.mean([right(corrupt(images, kind, s, torch.tensor(numbers), 3)) for s in STRENGTHS])
    each = {f"robustness_{kind}": rate for kind, rate in kinds.items()}
    whole = {"robustness": np.mean([*kinds.values()]), "robustness_clean": right(images)}
    return whole | each | {"samples": len(numbers)}


@pytest.mark.parametrize("batch", [1, 5, 43, 100])
def test_it_is_the_mean_accuracy_whatever_the_batch(batch):
    wanted = by_hand(Stripes(), [*range(43)])
    assert found(Stripes(), batch) == pytest.approx(wanted)
    assert list(found(Stripes(), batch)) == list(wanted)
    assert 0 < wanted["robustness"] < wanted["robustness_clean"]
    assert len({*wanted.values()}) == len(wanted)


def test_fewer_images_are_evenly_spaced_and_keep_their_numbers():
    wanted = by_hand(Stripes(), [0, 10, 21, 31, 42])
    assert found(Stripes(), 3, Robustness(KINDS, STRENGTHS, 5, 3)) == pytest.approx(wanted)


def test_images_without_label_or_that_cannot_be_read_are_left_out():
    source, told = Stripes(gone=(4, 5), unlabelled=(0, 30)), []
    left = [i for i in range(43) if i not in (0, 4, 5, 30)]
    assert found(source, 4, skipped=told.append) == pytest.approx(by_hand(source, left))
    assert told == ["stripes[4] is cut short", "stripes[5] is cut short"]


@pytest.mark.parametrize("batch", [8, 43])  # with 43 the second process has none
def test_several_processes_find_what_one_finds(batch):
    parts = []

    def first(mine):
        parts.append(mine)
        return mine

    found(Stripes(), batch, share=(0, 2), rows=first)
    both = found(Stripes(), batch, share=(1, 2), rows=lambda mine: np.concatenate((*parts, mine)))
    assert both == pytest.approx(by_hand(Stripes(), [*range(43)]))
    assert len(parts[0]) < 43 or batch == 43


@pytest.mark.parametrize(("channels", "without"), [(1, {"saturate"}), (3, set())])
def test_without_kinds_all_that_suit_the_images_are_judged(channels, without):
    threads = torch.get_num_threads()
    names = {f"robustness_{kind}" for kind in {*OURS} - without}
    result = found(Stripes(channels, 6), how=Robustness(strengths=(2,)))
    assert set(result) == {"robustness", "robustness_clean", "samples", *names}
    assert torch.get_num_threads() == threads


def test_beside_accuracy_each_has_its_own_number_of_images():
    numbers, _ = judge((Accuracy(), Robustness(KINDS, (1,), images=10)), Brightness(), data(Stripes()))
    assert numbers["samples"] == 43
    assert numbers["accuracy"] == by_hand(Stripes(), [*range(43)])["robustness_clean"]


def test_it_is_written_and_read_as_part_of_a_run():
    how = Robustness(("fog", "jpeg"), (1, 5), images=100, seed=7)
    assert parse(Evaluator, dump(how)) == how


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": ("rain",)}, "'rain' is not a corruption"),
        ({"strengths": (0,)}, "strength of .* is 0"),
        ({"strengths": ()}, r"strengths is \(\)"),
        ({"images": 0}, "images is 0"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(Robustness(), **change)


class Features:
    def predict(self, batch):
        return {"features": torch.zeros(len(batch), 2)}


@pytest.mark.parametrize(
    ("task", "source", "message"),
    [
        (Brightness(), Stripes(targets="classes"), "images of one class each, but these have classes"),
        (Features(), Stripes(), "no logits"),
        (Brightness(), Stripes(1), "saturate is not defined for 1-channel images"),
        (Brightness(), Stripes(length=2, gone=(0,), unlabelled=(1,)), "none of the images can be read"),
    ],
)
def test_what_cannot_be_judged_is_said(task, source, message):
    with pytest.raises(ValueError, match=message):
        dict(Robustness(("saturate",)).run(task, data(source, skipped=lambda problem: None)))

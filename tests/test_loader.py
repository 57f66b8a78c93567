"""Law 2: the batch of step t is a pure function of (seed, t); and evaluation reads every sample once."""

import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from photos import encode, evaluated, model, photo

from vitrail.data.images.augment import Augment
from vitrail.data.loader import Evaluation, Training, evaluation, stacked
from vitrail.data.order import samples
from vitrail.data.sources.mnist import fashion
from vitrail.data.sources.source import Example, Subset
from vitrail.data.stream import stream

NATIVE = model(3, 4, 3, "native")
FLIP, PLAIN, SHIFT = Augment(flip=0.5), Augment(flip=0.0), Augment(crop="shift", shift=1, erase=0.5)


@dataclass
class Numbered:
    """Images of 3 x 4 pixels that hold their own number, the target. bad: damaged files. larger: of another size."""

    length: int
    bad: tuple = ()
    larger: tuple = ()
    kind: str | None = None
    slow: float = 0.0
    read: list = field(default_factory=list)
    class_names = ("only",)
    targets = "class"

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        time.sleep(self.slow * (index % 3))
        self.read.append(index)
        image = np.arange(index, index + 36, dtype=np.uint8).reshape(3, 4, 3)
        image = np.zeros((5, 4, 3), np.uint8) if index in self.larger else image
        image = encode(image, self.kind) if self.kind else image
        return Example(b"no image" if index in self.bad else image, index, self.name(index))

    def target(self, index):
        return index

    def name(self, index):
        return f"numbered[{index}]"


class Photographs(Numbered):
    def __getitem__(self, index):
        return super().__getitem__(index)._replace(image=encode(photo(60, 80 + index), "JPEG"))


def made(source, *views, batch=4, seed=5, how=NATIVE, **options):
    return Training(source, how, views or (FLIP,), stacked, batch=batch, seed=seed, **options)


def run(training, start, stop, workers=0):
    return list(stream(training, training.keys(start, stop), workers))


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 7])
def test_a_batch_depends_on_seed_and_step_alone(start, workers):
    found = run(made(Numbered(10, slow=1e-4)), start, 20, workers)
    assert len(found) == 20 - start
    for step, batch in enumerate(found, start):
        assert equal(batch, made(Numbered(10))[step].batch)
        assert not equal(batch, made(Numbered(10), seed=6)[step].batch)
        assert not equal(batch, made(Numbered(10))[step + 1].batch)


@pytest.mark.parametrize("size", [1, 4, 8])
@pytest.mark.parametrize("views", [(FLIP,), (SHIFT,), (Augment(mixup=0.4, cutmix=1.0),), (FLIP, SHIFT)])
def test_micro_batches_only_split_the_same_batch(size, views):
    whole = made(Numbered(20), *views, batch=7)[3].batch
    if views[0].mixup and size == 1:
        with pytest.raises(ValueError, match=f"micro_batch is {size}"):
            made(Numbered(20), *views, batch=7, micro_batch=size)
        return
    parts = run(made(Numbered(20), *views, batch=7, micro_batch=size), 3, 4)
    assert [len(part) for part in parts] == ([size] * (7 // size) + [7 % size] * bool(7 % size) if size < 8 else [7])
    assert ("lam" in whole) == bool(views[0].mixup)
    for name in whole:
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))


def test_a_training_batch_is_the_ordered_samples_some_of_them_mirrored():
    source, training, mirrored = Numbered(50), made(Numbered(50), batch=100, seed=0), 0
    batch = training[1].batch
    assert batch["indices"].tolist() == samples(1, 100, 50, 0).tolist() == training.indices(1).tolist()
    for image, index in zip(batch["images"], batch["indices"].tolist(), strict=True):
        original = torch.from_numpy(source[index].image).permute(2, 0, 1)
        same = torch.equal(image, original)
        assert same or torch.equal(image, original.flip(-1))
        mirrored += not same
    assert 20 < mirrored < 80


@pytest.mark.parametrize(("length", "batch"), [(12, 4), (10, 4), (7, 7), (5, 8)])
def test_every_epoch_has_every_sample_once(length, batch):
    batches = run(made(Numbered(length), batch=batch), 0, 3 * length)  # `batch` epochs of three, and whole ones
    seen = torch.cat([one["indices"] for one in batches]).view(3 * batch, length)
    assert (seen.sort().values == torch.arange(length)).all()


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize(("length", "batch"), [(7, 4), (12, 4), (5, 100)])
def test_evaluation_has_every_sample_once_in_order(length, batch, workers):
    batches = list(evaluation(Numbered(length, slow=1e-4), NATIVE, batch=batch, workers=workers))
    assert [n for b in batches for n in b["indices"].tolist()] == list(range(length))
    assert [len(b) for b in batches] == [batch] * (length // batch) + [length % batch] * bool(length % batch)
    images = batches[-1]["images"]
    assert (images.dtype, images.is_contiguous()) == (torch.uint8, True)
    assert torch.equal(images[-1], torch.from_numpy(Numbered(length)[length - 1].image).permute(2, 0, 1))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["evaluation", "training"])
def test_images_of_two_sizes_are_refused_by_name(kind, workers):
    source = Numbered(5, larger=(3,))
    batches = made(source, PLAIN, batch=5) if kind == "training" else Evaluation(source, NATIVE, stacked, batch=5)
    with pytest.raises(ValueError, match=r"^[^\n]*numbered\[\d\][^\n]*numbered\[\d\][^\n]*$") as caught:
        list(stream(batches, range(1), workers))
    assert all(text in str(caught.value) for text in ("numbered[3]", "(5, 4, 3)", "(3, 4, 3)"))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_refused_by_name_or_skipped_and_told(workers):
    source, told, left = Numbered(6, bad=(2, 3), kind="PNG"), [], []
    refusing, training = (made(source, PLAIN, batch=6, unreadable=how) for how in ("refuse", "skip"))
    with pytest.raises(ValueError, match=r"^numbered\[[23]\] .* --data.unreadable skip"):
        list(stream(refusing, range(1), workers))
    with pytest.raises(ValueError, match=r"^numbered\[2\]"):
        list(evaluation(source, NATIVE, batch=6, workers=workers))
    [batch] = stream(training, range(1), workers, skipped=told.append)
    order = samples(0, 6, 6, 5).tolist()
    assert batch["indices"].tolist() == [4 if index in (2, 3) else index for index in order]
    assert {text[:11] for text in told} == {"numbered[2]", "numbered[3]"}
    batches = evaluation(source, NATIVE, batch=2, workers=workers, skipped=left.append)
    assert [b["indices"].tolist() for b in batches] == [[0, 1], [4, 5]]
    assert len(left) == 2
    with pytest.raises(ValueError, match=r"100 images .* numbered\[\d\]"):
        made(Numbered(3, bad=(0, 1, 2)), unreadable="skip")[0]


@pytest.mark.parametrize(("side", "reads"), [(15, 12), (20, 3)])
def test_what_is_remembered_changes_no_batch_and_no_shrunk_crop_is(side, reads):
    """Of images of four times the model's size, only the crop is decoded: another one each time."""
    source, how = Photographs(3), {"batch": 3, "how": model(side, side)}
    fresh, kept, some = (
        made(one, Augment("inception"), remember=remember, **how)
        for one, remember in ((Photographs(3), 0), (source, 2**20), (Photographs(3), 60 * 82 * 3))
    )
    for step in range(4):
        assert equal(kept[step].batch, fresh[step].batch)
        assert equal(some[step].batch, fresh[step].batch)
    assert len(source.read) == reads
    assert len(some.images.known) == (reads == 3)


@pytest.mark.parametrize("remember", [0, 2**20])
def test_several_views_are_each_drawn_by_a_key_of_its_own(remember):
    whole, local, how = Augment("inception"), Augment("inception", scale=(0.1, 0.3)), {"how": model(24, 20)}
    both = made(Photographs(9), whole, local, remember=remember, **how)
    images = both[1].batch["images"]
    assert images.shape == (4, 2, 3, 24, 20)
    assert torch.equal(images, both[1].batch["images"])
    assert torch.equal(images[:, 0], made(Photographs(9), whole, **how)[1].batch["images"])
    same = made(Photographs(9), local, local, **how)[1].batch["images"]
    assert torch.equal(same[:, 1], images[:, 1])
    assert all(not torch.equal(one, other) for one, other in same)


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_training_and_evaluation_see_what_predict_sees(resize, channels):
    """Law 3: one description of the preprocessing, whoever uses it; grey becomes what the model has channels for."""
    how, source = model(6, 6, channels, resize), Subset(fashion("test"), range(3))
    expected = [evaluated(source[i].image.repeat(channels, 2), how).transpose(2, 0, 1) for i in range(3)]
    assert np.array_equal(next(evaluation(source, how, batch=3))["images"], expected)
    trained = made(source, PLAIN, batch=3, how=how)
    assert np.array_equal(trained[0].batch["images"], [expected[index] for index in trained.indices(0)])

"""Law 2: the batch of step t is a pure function of (seed, t); and evaluation reads every sample once."""

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from vitrail.data.idx import fashion
from vitrail.data.loader import collate, evaluation, training, training_batch
from vitrail.data.order import samples
from vitrail.data.transforms import Preprocessing, prepare


@dataclass
class Numbered:
    """`length` images of 3 x 4 pixels and 2 channels that hold their own number; target is the number, too."""

    length: int
    slow: float = 0.0
    read: list = field(default_factory=list)
    class_names = ("only",)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        time.sleep(self.slow * (index % 3))
        self.read.append(index)
        image = np.arange(24, dtype=np.uint8).reshape(3, 4, 2) + np.uint8(index % 200)
        return image, index, f"numbered[{index}]"


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.parametrize("ahead", [1, 2, 5, 40])
@pytest.mark.parametrize("start", [0, 1, 7, 19])
def test_a_batch_depends_on_seed_and_step_alone(start, ahead):
    # Reading takes different times, so that threads finish out of order.
    found = dict(training(Numbered(10, slow=1e-4), batch=4, seed=5, start=start, stop=20, ahead=ahead))
    assert list(found) == list(range(start, 20))
    for step, batch in found.items():
        assert equal(batch, training_batch(Numbered(10), step, 4, 5))


def test_another_seed_or_step_is_another_batch():
    first = training_batch(Numbered(100), 3, 8, 0)
    assert equal(first, training_batch(Numbered(100), 3, 8, 0))
    for other in (training_batch(Numbered(100), 3, 8, 1), training_batch(Numbered(100), 4, 8, 0)):
        assert not equal(first, other)


def test_a_training_batch_is_the_ordered_samples_some_of_them_mirrored():
    source, mirrored = Numbered(50), 0
    for step in range(10):
        batch = training_batch(source, step, 10, 0)
        assert batch["targets"].tolist() == samples(step, 10, 50, 0).tolist()
        for image, target in zip(batch["images"], batch["targets"].tolist(), strict=True):
            original = torch.from_numpy(source[target][0]).permute(2, 0, 1)
            same = torch.equal(image, original)
            assert same or torch.equal(image, original.flip(-1))
            mirrored += not same
    assert 20 < mirrored < 80


@pytest.mark.parametrize(("length", "batch"), [(12, 4), (10, 4), (7, 7), (5, 8)])
def test_every_epoch_has_every_sample_once(length, batch):
    steps = 3 * length  # `batch` epochs of three, and whole ones
    stream = [n for _, b in training(Numbered(length), batch=batch, seed=1, start=0, stop=steps) for n in b["targets"]]
    for epoch in range(3 * batch):
        assert sorted(map(int, stream[epoch * length : (epoch + 1) * length])) == list(range(length))


@pytest.mark.parametrize("ahead", [1, 2, 9])
@pytest.mark.parametrize(("length", "batch"), [(10, 4), (12, 4), (1, 4), (3, 1), (5, 100)])
def test_evaluation_has_every_sample_once_in_order(length, batch, ahead):
    batches = list(evaluation(Numbered(length, slow=1e-4), batch=batch, ahead=ahead))
    assert torch.cat([b["targets"] for b in batches]).tolist() == list(range(length))
    sizes = [len(b["images"]) for b in batches]
    assert sizes == [batch] * (length // batch) + [length % batch] * bool(length % batch)
    image = torch.from_numpy(Numbered(length)[length - 1][0]).permute(2, 0, 1)
    assert torch.equal(batches[-1]["images"][-1], image)


def test_a_batch_is_channels_first_bytes_and_whole_numbers():
    batch = collate(Numbered(5), [4, 0, 4])
    assert batch["images"].shape == (3, 2, 3, 4)
    assert batch["images"].dtype == torch.uint8
    assert batch["images"].is_contiguous()
    assert batch["targets"].dtype == torch.int64
    assert batch["targets"].tolist() == [4, 0, 4]


@dataclass
class Mixed(Numbered):
    """Image 3 is larger than the others."""

    def __getitem__(self, index):
        image, target, name = super().__getitem__(index)
        return (np.zeros((5, 4, 2), np.uint8) if index == 3 else image), target, name


@pytest.mark.parametrize(
    "read",
    [
        lambda: collate(Mixed(5), [1, 2, 3]),
        lambda: list(evaluation(Mixed(5), batch=5)),
        lambda: list(training(Mixed(5), batch=5, seed=0, start=0, stop=3)),
    ],
    ids=["collate", "evaluation", "training"],
)
def test_images_of_two_sizes_are_refused_by_name(read):
    with pytest.raises(ValueError, match="one batch needs one size") as caught:
        read()
    message = str(caught.value)
    assert "numbered[3]" in message
    assert "(5, 4, 2)" in message
    assert "(3, 4, 2)" in message
    assert message.count("numbered[") == 2
    assert not loader_threads()


@dataclass
class Broken(Numbered):
    def __getitem__(self, index):
        if index == 6:
            raise OSError("the disk has gone")
        return super().__getitem__(index)


@pytest.mark.parametrize("ahead", [1, 4])
def test_an_exception_in_a_thread_reaches_the_caller_at_its_batch(ahead):
    batches = evaluation(Broken(20), batch=2, ahead=ahead)
    for start in (0, 2, 4):
        assert next(batches)["targets"].tolist() == [start, start + 1]
    with pytest.raises(OSError, match="the disk has gone"):
        next(batches)
    assert not loader_threads()
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_leaving_midway_ends_the_threads_and_reads_no_further(taken):
    source = Numbered(10_000, slow=1e-4)
    batches = training(source, batch=2, seed=0, start=0, stop=5000)
    for _ in range(taken):
        next(batches)
    batches.close()
    assert not loader_threads()
    assert len(source.read) <= 2 * (taken + 2)


def test_batches_are_prepared_ahead_but_no_further_than_asked():
    source = Numbered(10_000)
    batches = training(source, batch=1, seed=0, start=0, stop=5000, ahead=3)
    next(batches)
    deadline = time.monotonic() + 5
    while len(source.read) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(source.read) == 4
    batches.close()


def test_nothing_is_read_where_no_step_is_left():
    source = Numbered(10)
    assert list(training(source, batch=2, seed=0, start=5, stop=5)) == []
    assert not source.read


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_training_and_evaluation_see_what_predict_sees(resize):
    """Law 3: one description of the preprocessing, whoever uses it."""
    how = Preprocessing((6, 6), (0.5,), (0.5,), resize)
    source = fashion("test")
    batch = next(evaluation(source, batch=3, how=how))
    for i in range(3):
        assert torch.equal(batch["images"][i], prepare(source[i][0], how))
    trained = training_batch(source, 0, 3, 0, how)["images"]
    assert trained.shape == (3, 1, 6, 6)


def test_an_image_that_cannot_be_prepared_is_named():
    how = Preprocessing((6, 6), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz\[4\]: an image is .*; it must be uint8"):
        collate(fashion("test"), [4], how)

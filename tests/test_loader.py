"""Law 2: the batch of step t is a pure function of (seed, t); and evaluation reads every sample once."""

import io
import multiprocessing
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing, prepare
from vitrail.data.loader import Evaluation, Images, Training, collate, evaluation, prefetch, stream, workers_for
from vitrail.data.order import samples
from vitrail.data.sources.mnist import fashion
from vitrail.data.sources.source import Subset

NATIVE = Preprocessing((3, 4), (0.5,) * 3, (0.5,) * 3, "native")
FLIP, PLAIN = Augment(flip=0.5), Augment(flip=0.0)


@dataclass
class Numbered:
    """`length` images of 3 x 4 pixels that hold their own number; target is the number, too."""

    length: int
    slow: float = 0.0
    read: list = field(default_factory=list)
    class_names = ("only",)
    multi_label = False

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        time.sleep(self.slow * (index % 3))
        self.read.append(index)
        image = np.arange(36, dtype=np.uint8).reshape(3, 4, 3) + np.uint8(index % 200)
        return image, self.target(index), self.name(index)

    def target(self, index):
        return index

    def name(self, index):
        return f"numbered[{index}]"


def made(source, batch=4, seed=5, augment=FLIP, **options):
    return Training(source, NATIVE, augment, batch=batch, seed=seed, **options)


def run(training, start, stop, workers=0):
    return list(stream(training, training.keys(start, stop), workers))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("start", [0, 7, 19])
def test_a_batch_depends_on_seed_and_step_alone(start, workers):
    # DeferredMetrics takes different times, so that threads and processes finish out of order.
    found = run(made(Numbered(10, slow=1e-4)), start, 20, workers)
    assert len(found) == 20 - start
    for step, batch in enumerate(found, start):
        assert equal(batch, made(Numbered(10))[step].batch)


@pytest.mark.parametrize("part", [1, 3, 4, 7, 8])
@pytest.mark.parametrize("augment", [FLIP, Augment(crop="shift", shift=1, erase=0.5)])
def test_parts_only_split_the_same_batch(part, augment):
    whole = made(Numbered(20), batch=7, augment=augment)[3].batch
    split = made(Numbered(20), batch=7, augment=augment, part=part)
    parts = run(split, 3, 4)
    assert [len(p["images"]) for p in parts] == [part] * (7 // part) + [7 % part] * bool(7 % part) or part == 8
    for name in whole:
        assert torch.equal(whole[name], torch.cat([p[name] for p in parts]))


def test_mixed_pairs_stay_together_in_even_parts():
    mixing = Augment(mixup=0.4, cutmix=1.0)
    whole = made(Numbered(20), batch=7, augment=mixing)[3].batch
    parts = run(made(Numbered(20), batch=7, augment=mixing, part=2), 3, 4)
    assert whole.keys() == {"images", "targets", "lam", "box"}
    for name in whole:
        assert torch.equal(whole[name], torch.cat([p[name] for p in parts]))
    with pytest.raises(ValueError, match="micro_batch is 3, but images are mixed in pairs; choose an even number"):
        made(Numbered(20), batch=7, augment=mixing, part=3)


def test_another_seed_or_step_is_another_batch():
    first = made(Numbered(100), 8, 0)[3].batch
    assert equal(first, made(Numbered(100), 8, 0)[3].batch)
    for other in (made(Numbered(100), 8, 1)[3].batch, made(Numbered(100), 8, 0)[4].batch):
        assert not equal(first, other)


def test_a_training_batch_is_the_ordered_samples_some_of_them_mirrored():
    source, mirrored = Numbered(50), 0
    for step in range(10):
        batch = made(source, 10, 0)[step].batch
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
    seen = [n for b in run(made(Numbered(length), batch, 1), 0, steps) for n in b["targets"]]
    for epoch in range(3 * batch):
        assert sorted(map(int, seen[epoch * length : (epoch + 1) * length])) == list(range(length))


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize(("length", "batch"), [(7, 4), (12, 4), (1, 4), (3, 1), (5, 100)])
def test_evaluation_has_every_sample_once_in_order(length, batch, workers):
    batches = list(evaluation(Numbered(length, slow=1e-4), how=NATIVE, batch=batch, workers=workers))
    assert torch.cat([b["targets"] for b in batches]).tolist() == list(range(length))
    sizes = [len(b["images"]) for b in batches]
    assert sizes == [batch] * (length // batch) + [length % batch] * bool(length % batch)
    image = torch.from_numpy(Numbered(length)[length - 1][0]).permute(2, 0, 1)
    assert torch.equal(batches[-1]["images"][-1], image)


def test_a_batch_is_channels_first_bytes_and_whole_numbers():
    source = Numbered(5)
    batch = collate([source[4], source[0], source[4]], source)
    assert batch["images"].shape == (3, 3, 3, 4)
    assert batch["images"].dtype == torch.uint8
    assert batch["images"].is_contiguous()
    assert batch["targets"].dtype == torch.int64
    assert batch["targets"].tolist() == [4, 0, 4]


class Several(Numbered):
    """Images with no label, one or two."""

    class_names = ("a", "b", "c")
    multi_label = True

    def target(self, index):
        return ((), (1,), (0, 2))[index % 3]


def test_several_labels_become_a_row_of_ones_and_zeros():
    batch = next(evaluation(Several(3), how=NATIVE))
    assert batch["targets"].tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 1]]
    assert batch["targets"].dtype == torch.float32


@dataclass
class Mixed(Numbered):
    """Image 3 is larger than the others."""

    def __getitem__(self, index):
        image, target, name = super().__getitem__(index)
        return (np.zeros((5, 4, 3), np.uint8) if index == 3 else image), target, name


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["evaluation", "training"])
def test_images_of_two_sizes_are_refused_by_name(kind, workers):
    batches = made(Mixed(5), 5, augment=PLAIN) if kind == "training" else Evaluation(Mixed(5), NATIVE, batch=5)
    with pytest.raises(ValueError, match="one batch needs one size") as caught:
        list(stream(batches, range(1), workers))
    message = str(caught.value)
    assert "numbered[3]" in message
    assert "(5, 4, 3)" in message
    assert "(3, 4, 3)" in message
    assert message.count("numbered[") == 2
    assert "\n" not in message
    assert not loader_threads()


@dataclass
class Files(Numbered):
    """PNG files, of which some are damaged."""

    bad: tuple = ()

    def __getitem__(self, index):
        image, target, name = super().__getitem__(index)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        return (b"no image" if index in self.bad else buffer.getvalue()), target, name


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_refused_by_name(workers):
    training = made(Files(6, bad=(2,)), 6)
    with pytest.raises(ValueError, match=r"numbered\[2\] is not an image .* --data.unreadable skip trains without"):
        list(stream(training, training.keys(0, 1), workers))
    with pytest.raises(ValueError, match=r"numbered\[2\] is not an image"):
        list(evaluation(Files(6, bad=(2,)), how=NATIVE, workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_may_be_skipped_and_is_told(workers):
    told = []
    training = made(Files(6, bad=(2, 3)), 6, augment=PLAIN, unreadable="skip")
    [batch] = stream(training, training.keys(0, 1), workers, skipped=told.append)
    order = samples(0, 6, 6, 5).tolist()
    assert batch["targets"].tolist() == [4 if index in (2, 3) else index for index in order]
    assert {text[:11] for text in told} == {"numbered[2]", "numbered[3]"}
    left = []
    batches = list(evaluation(Files(6, bad=(2, 3)), how=NATIVE, batch=2, workers=workers, skipped=left.append))
    assert [b["targets"].tolist() for b in batches] == [[0, 1], [], [4, 5]]
    assert len(left) == 2


def test_nothing_but_unreadable_images_is_an_error():
    training = made(Files(3, bad=(0, 1, 2)), 2, unreadable="skip")
    with pytest.raises(ValueError, match="100 images in a row cannot be read, the last because numbered"):
        training[0]


def test_decoded_images_are_remembered_up_to_a_limit():
    source = Files(6)
    images = Images(source, 3, remember=3 * 36)
    first = [images[index][0] for index in range(6)]
    again = [images[index][0] for index in range(6)]
    assert source.read == [0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@dataclass
class Broken(Numbered):
    def __getitem__(self, index):
        if index == 6:
            raise OSError("the disk has gone")
        return super().__getitem__(index)


def test_an_exception_in_a_thread_reaches_the_caller_at_its_batch():
    batches = evaluation(Broken(20), how=NATIVE, batch=2)
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
    training = made(source, 2)
    batches = stream(training, training.keys(0, 5000), 0)
    for _ in range(taken):
        next(batches)
    batches.close()
    assert not loader_threads()
    assert len(source.read) <= 2 * (taken + 2)


def test_leaving_midway_ends_the_processes():
    training = made(Numbered(10_000), 2)
    batches = stream(training, training.keys(0, 5000), 2)
    next(batches)
    batches.close()
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


def test_things_are_prepared_ahead_but_no_further_than_asked():
    made_already = []
    items = prefetch(lambda key: made_already.append(key) or key, range(5000), 3)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made_already) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert len(made_already) == 4
    items.close()


def test_nothing_is_read_where_no_step_is_left():
    source = Numbered(10)
    assert run(made(source), 5, 5) == []
    assert not source.read


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_training_and_evaluation_see_what_predict_sees(resize):
    """Law 3: one description of the preprocessing, whoever uses it."""
    how = Preprocessing((6, 6), (0.5,), (0.5,), resize)
    source = Subset(fashion("test"), range(3))
    batch = next(evaluation(source, batch=3, how=how))
    for i in range(3):
        assert torch.equal(batch["images"][i], prepare(source[i][0], how))
    trained = Training(source, how, PLAIN, batch=3, seed=0)
    for image, index in zip(trained[0].batch["images"], trained.indices(0), strict=True):
        assert torch.equal(image, prepare(source[int(index)][0], how))


def test_grey_images_are_brought_to_the_channels_of_the_model():
    how = Preprocessing((28, 28), (0.5,) * 3, (0.5,) * 3)
    images = next(evaluation(fashion("test"), how=how, batch=2))["images"]
    assert images.shape == (2, 3, 28, 28)
    assert torch.equal(images[:, 0], images[:, 2])


def test_an_image_that_cannot_be_prepared_is_named():
    how = Preprocessing((6_000_000, 6), (0.5,), (0.5,), "crop")
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz\[0\]: an image of 28 x 28 would become"):
        next(evaluation(fashion("test"), how=how))


def test_workers_are_threads_beside_a_cpu_and_processes_beside_a_gpu():
    assert workers_for(torch.device("cpu"), None) == 0
    assert 1 <= workers_for(torch.device("cuda"), None) <= 16
    assert workers_for(torch.device("cuda"), 0) == 0
    assert workers_for(torch.device("cpu"), 3) == 3

"""Progressive resizing: sizes follow from the step, and a batch still from (seed, step)."""

import io
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_runs import EVERYTHING, assert_same_run, crash_at, small, start

from vitrail.data.augment import Augment
from vitrail.data.growth import Growth, size_at
from vitrail.data.idx import fashion
from vitrail.data.loader import Training, stream
from vitrail.data.transforms import Preprocessing
from vitrail.recipes.demo import demo
from vitrail.train import Trainer

GREY = Preprocessing((28, 28), (0.5,), (0.5,))
GROWN = Growth(start=0.5, until="50%", stages=2)


def test_the_example_of_its_docstring():
    growth = Growth(start=0.57, until="60%")
    sizes = [size_at(step, growth, 100, (28, 28), (4, 4)) for step in range(100)]
    assert sizes == [(16, 16)] * 60 + [(28, 28)] * 40


@settings(deadline=None)
@given(
    start=st.floats(0.01, 1.0),
    percent=st.integers(0, 100),
    stages=st.integers(1, 5),
    full=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    stride=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    total=st.integers(1, 60),
)
def test_images_grow_by_whole_patches_and_end_at_the_models_size(start, percent, stages, full, stride, total):
    growth = Growth(start, f"{percent}%", stages)
    sizes = [size_at(step, growth, total, full, stride) for step in range(total + 1)]
    assert sizes[-1] == full
    assert len(set(sizes)) <= stages + 1
    for before, after in pairwise(sizes):
        assert before[0] <= after[0]
        assert before[1] <= after[1]
    for size in set(sizes) - {full}:
        assert all(0 < s <= f and (s % p == 0 or s == f) for s, f, p in zip(size, full, stride, strict=True))


def test_it_may_end_after_epochs_and_without_growth_nothing_is_resized():
    growth = Growth(start=0.5, until="2 epochs")
    sizes = [size_at(step, growth, 100, (8, 8), (4, 4), batch=10, examples=50) for step in range(12)]
    assert sizes == [(4, 4)] * 10 + [(8, 8)] * 2
    assert {size_at(step, Growth(), 100, (8, 8), (4, 4)) for step in range(100)} == {(8, 8)}


@pytest.mark.parametrize("wrong", [{"start": 0.0}, {"start": 1.1}, {"stages": 0}])
def test_what_is_no_growth_is_refused(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is"):
        Growth(**wrong)


def test_native_images_cannot_grow():
    run = demo()
    with pytest.raises(ValueError, match="native size cannot grow"):
        replace(run, growth=GROWN, preprocessing=replace(run.preprocessing, resize="native"))


def sizes(step):
    return size_at(step, GROWN, 8, (28, 28), (7, 7))


@pytest.mark.parametrize("how", [Augment(flip=0.5), Augment(crop="shift", shift=2)])
def test_small_batches_are_the_large_ones_shrunk(how):
    grown = Training(fashion("train"), GREY, how, batch=6, seed=3, size=sizes)
    plain = Training(fashion("train"), GREY, how, batch=6, seed=3)
    assert [grown[step].batch["images"].shape[-1] for step in range(8)] == [14, 14, 21, 21, 28, 28, 28, 28]
    for step in range(8):
        small_one, whole = grown[step].batch, plain[step].batch
        assert torch.equal(small_one["targets"], whole["targets"])
        wanted = F.interpolate(whole["images"], sizes(step), mode="bilinear", antialias=True)
        assert torch.equal(small_one["images"], wanted if step < 4 else whole["images"])


class Photos:
    """JPEGs of 120 x 160 pixels."""

    class_names, multi_label = ("one",), False

    def __init__(self):
        noise = np.random.default_rng(0).integers(0, 256, (5, 8, 10, 3), np.uint8)
        self.files = []
        for pixels in noise:
            out = io.BytesIO()
            Image.fromarray(pixels).resize((160, 120)).save(out, "JPEG")
            self.files.append(out.getvalue())

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return self.files[index], self.target(index), self.name(index)

    def target(self, index):
        return 0

    def name(self, index):
        return f"photo {index}"


@pytest.mark.parametrize("crop", ["inception", "simple"])
def test_random_crops_show_the_same_part_in_fewer_pixels(crop):
    how, to = Augment(crop=crop), Preprocessing((28, 28), (0.5,) * 3, (0.5,) * 3)
    grown, plain = (Training(Photos(), to, how, batch=4, seed=1, size=size) for size in (sizes, None))
    for step in (0, 2, 5):
        small_one, whole = grown[step].batch["images"].float(), plain[step].batch["images"].float()
        assert small_one.shape[-2:] == sizes(step)
        if crop == "inception":  # DeiT III's crop is cut in pixels of the result
            assert (F.adaptive_avg_pool2d(small_one, 7) - F.adaptive_avg_pool2d(whole, 7)).abs().mean() < 6


@pytest.mark.parametrize("remember", [0, 2**20])
def test_what_is_remembered_changes_no_batch(remember):
    to = Preprocessing((56, 56), (0.5,) * 3, (0.5,) * 3)
    size = partial(size_at, growth=GROWN, total=8, full=(56, 56), stride=(7, 7))
    how = Augment(crop="inception")
    several = Training(Photos(), to, how, batch=4, seed=1, size=size, remember=remember)
    list(stream(several, range(8), 0))
    for step in (0, 3, 7):
        alone = Training(Photos(), to, how, batch=4, seed=1, size=size)
        assert torch.equal(several[step].batch["images"], alone[step].batch["images"])


@pytest.mark.parametrize("step", [3, 7])
def test_a_run_that_grows_resumes_bit_for_bit(tmp_path, quick, step):
    run = small(**EVERYTHING, growth=Growth(start=0.5, until="50%"))
    start(run, tmp_path / "whole").fit()
    crash_at(start(run, tmp_path / "parted"), step)
    Trainer(run, tmp_path / "parted").fit()
    assert_same_run(tmp_path / "whole", tmp_path / "parted")


def test_processes_that_load_see_it_grow_the_same(tmp_path, quick):
    for workers in (0, 2):
        start(small(workers=workers, growth=GROWN), tmp_path / str(workers)).fit()
    assert_same_run(tmp_path / "0", tmp_path / "2")


def test_a_run_that_grows_is_another_than_one_that_does_not(tmp_path, quick):
    seen = []
    for name, growth in (("grown", GROWN), ("plain", Growth())):
        trainer = start(small(growth=growth, duration="4 steps"), tmp_path / name)
        inner = trainer.task.model.embed
        trainer.task.model.embed = lambda images, inner=inner: seen.append(tuple(images.shape[-2:])) or inner(images)
        trainer.fit()
    assert seen[:2] == [(14, 14), (21, 21)]
    assert (14, 14) not in seen[-4:]

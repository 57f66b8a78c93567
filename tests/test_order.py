"""The order of samples: a bijection for any length, well mixed however short, and a function of (seed, step) alone."""

import math
from inspect import unwrap
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from vitrail.data.order import WINDOW, _mix, permute, sample_seeds, samples, step_seed

seeds = st.integers(0, 2**64 - 1)
epochs = st.integers(0, 2**63 - 1)
# Chance alone falls below this in one check of ten thousand; seeds are fixed, so a test that passes keeps passing.
P = 1e-4

GOLDEN_TEN = [1, 3, 0, 7, 4, 5, 2, 8, 6, 9]
GOLDEN_HUGE = [537795411041, 412483984513, 983787026726]
GOLDEN_BATCH = [1350, 8646, 556, 5409]
GOLDEN_SEEDS = [17115791175978489931, 8809558598779357904]


def epoch_of(length, seed, epoch):
    return permute(np.arange(length), length, seed, epoch)


def orders(length, count, seed):
    """The first `count` epochs, (count, length)."""
    return samples(0, count * length, length, seed).reshape(count, length)


def p_uniform(codes, cells):
    return chisquare(np.bincount(codes, minlength=cells)).pvalue


@given(length=st.integers(1, 3000), seed=seeds, epoch=epochs)
def test_an_epoch_holds_each_sample_once(length, seed, epoch):
    assert np.array_equal(np.sort(epoch_of(length, seed, epoch)), np.arange(length))


@pytest.mark.parametrize("length", [*range(1, 70), 127, 128, 129, 255, 256, 257, 65535, 65536, 65537])
def test_an_epoch_holds_each_sample_once_around_powers_of_two(length):
    assert np.array_equal(np.sort(epoch_of(length, 3, 5)), np.arange(length))


@given(length=st.integers(1, 2**62), seed=seeds, epoch=epochs, data=st.data())
def test_distinct_places_give_distinct_samples_at_any_length(length, seed, epoch, data):
    places = data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=20, unique=True))
    found = permute(np.array(places), length, seed, epoch)
    assert len(set(found.tolist())) == len(places)
    assert found.min() >= 0
    assert found.max() < length


@given(length=st.integers(1, 10**12), seed=seeds, epoch=epochs, data=st.data())
def test_an_array_gives_what_its_elements_give(length, seed, epoch, data):
    places = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=6, max_size=6)))
    one_by_one = [permute(int(place), length, seed, epoch) for place in places]
    found = permute(places.reshape(2, 3), length, seed, epoch)
    assert found.shape == (2, 3)
    assert found.dtype == np.int64
    assert found.ravel().tolist() == one_by_one


def test_shapes_and_types_of_the_answers():
    assert isinstance(permute(3, 10, 0, 0), np.int64)
    assert permute(np.zeros((0, 4), np.int64), 10, 0, 0).shape == (0, 4)
    assert permute(np.array(3, np.int32), 10, 0, 0) == permute(3, 10, 0, 0)
    assert samples(0, 7, 10, 0).dtype == np.int64
    assert sample_seeds(0, 7, 0).dtype == np.uint64


def test_the_order_never_changes_between_versions():
    """A run that resumes under a newer Vitrail must see the same samples: these numbers are a promise."""
    assert epoch_of(10, 0, 0).tolist() == GOLDEN_TEN
    assert permute(np.array([0, 1, 2**40 - 1]), 2**40, 7, 3).tolist() == GOLDEN_HUGE
    assert samples(1000, 4, 11_000, 42).tolist() == GOLDEN_BATCH
    assert sample_seeds(1000, 2, 42).tolist() == GOLDEN_SEEDS


def test_the_mixer_is_splitmix64():
    """The first outputs for seed 0, as published with Vigna's splitmix64.c."""
    states = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert _mix(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("other", [{"seed": 1}, {"seed": 2**63}, {"epoch": 1}, {"epoch": 2**40}])
def test_seeds_and_epochs_differ(other):
    one = epoch_of(1000, seed=0, epoch=0)
    two = epoch_of(1000, **{"seed": 0, "epoch": 0} | other)
    assert (one == two).sum() < 10  # two random orders agree in one place on average


def test_a_seed_is_no_later_epoch_of_another():
    """Adding seed and epoch before mixing is the classic mistake: seed 1 then repeats seed 0, shifted."""
    golden = 0x9E3779B97F4A7C15
    for shift in (1, golden, 2**64 - golden):
        later = [tuple(epoch_of(50, 0, epoch)) for epoch in range(20)]
        other = [tuple(epoch_of(50, shift, epoch)) for epoch in range(20)]
        assert not set(later) & set(other)


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6, 7])
def test_all_orders_of_a_tiny_data_set_are_equally_likely(length):
    found = orders(length, 40_000, seed=1)
    _, ranks = np.unique(found @ length ** np.arange(length), return_inverse=True)
    assert ranks.max() + 1 == math.factorial(length)
    assert p_uniform(ranks, math.factorial(length)) > P


@pytest.mark.parametrize("length", [2, 3, 5, 10, 16, 17, 33, 100])
def test_every_place_is_equally_likely_for_every_sample(length):
    found = orders(length, 5000, seed=2)
    p = [p_uniform(found[:, place], length) for place in range(length)]
    assert min(p) > P / length
    assert np.median(p) > 0.1


@pytest.mark.parametrize("length", [3, 5, 10, 16, 17, 33])
def test_neighbours_are_independent(length):
    """Within an epoch, at all places together and at the first alone; and from one epoch to the next."""
    found = orders(length, 12_000, seed=3)
    off_diagonal = np.flatnonzero(~np.eye(length, dtype=bool).ravel())
    first = np.bincount(found[:, 0] * length + found[:, 1], minlength=length**2)
    assert first[~np.isin(np.arange(length**2), off_diagonal)].sum() == 0
    assert chisquare(first[off_diagonal]).pvalue > P
    every = np.bincount((found[:, :-1] * length + found[:, 1:]).ravel(), minlength=length**2)
    assert chisquare(every[off_diagonal]).pvalue > P
    assert p_uniform(found[:-1, 0] * length + found[1:, 0], length**2) > P


@pytest.mark.parametrize("length", [5, 16])
def test_seeds_are_as_independent_as_epochs(length):
    found = np.stack([epoch_of(length, seed, 0) for seed in range(1000)])
    assert p_uniform(found[:, 0], length) > P
    assert p_uniform(found[:-1, 0] * length + found[1:, 0], length**2) > P


@pytest.mark.parametrize("length", [20_000, 65_536])
def test_a_long_epoch_has_no_trace_of_the_file_order(length):
    """Place against sample, and sample against next sample, in 20 by 20 cells; also in the low digits."""
    found = epoch_of(length, 4, 0)
    places = np.arange(length)

    def p_independent(one, two):
        table = np.zeros((20, 20), int)
        np.add.at(table, (one, two), 1)
        return chi2_contingency(table).pvalue

    assert p_independent(places * 20 // length, found * 20 // length) > P
    assert p_independent(places % 20, found % 20) > P
    assert p_independent(found[:-1] * 20 // length, found[1:] * 20 // length) > P
    assert p_independent(found[:-1] % 20, found[1:] % 20) > P


@given(step=st.integers(0, 300), batch=st.integers(1, 50), length=st.integers(1, 60), seed=seeds)
def test_a_batch_is_a_slice_of_the_concatenated_epochs(step, batch, length, seed):
    first, last = step * batch // length, ((step + 1) * batch - 1) // length
    stream = np.concatenate([epoch_of(length, seed, epoch) for epoch in range(first, last + 1)])
    start = step * batch - first * length
    assert np.array_equal(samples(step, batch, length, seed), stream[start : start + batch])


@given(batch=st.integers(4, 64), length=st.integers(1, 64), seed=seeds)
def test_nothing_is_dropped_or_repeated_within_an_epoch(batch, length, seed):
    steps = -(-3 * length // batch)
    stream = np.concatenate([samples(step, batch, length, seed) for step in range(steps)])
    for epoch in range(3):
        assert np.array_equal(np.sort(stream[epoch * length : (epoch + 1) * length]), np.arange(length))


def test_a_batch_straddles_two_epochs_and_may_hold_many():
    assert samples(3, 4, 6, 0).tolist() == epoch_of(6, 0, 2).tolist()[:4]
    assert samples(1, 4, 6, 0).tolist() == epoch_of(6, 0, 0).tolist()[4:] + epoch_of(6, 0, 1).tolist()[:2]
    assert np.array_equal(np.bincount(samples(0, 4096, 4, 0)), [1024] * 4)


@given(step=st.integers(0, 10**9), batch=st.integers(1, 40), parts=st.integers(1, 5), seed=seeds)
def test_the_cut_into_batches_does_not_matter(step, batch, parts, seed):
    """Resuming, accumulating and more processes only cut the stream elsewhere, for samples and for their keys."""
    whole, keys = samples(step, batch * parts, 1000, seed), sample_seeds(step, batch * parts, seed)
    small = range(step * parts, (step + 1) * parts)
    assert np.array_equal(whole, np.concatenate([samples(t, batch, 1000, seed) for t in small]))
    assert np.array_equal(keys, np.concatenate([sample_seeds(t, batch, seed) for t in small]))


def test_history_does_not_matter():
    forwards = [samples(step, 32, 100, 9) for step in range(20)]
    backwards = [samples(step, 32, 100, 9) for step in reversed(range(20))][::-1]
    assert np.array_equal(forwards, backwards)


def test_sample_keys_are_distinct_and_their_bits_fair():
    keys = sample_seeds(0, 50_000, 5)
    assert len(np.unique(keys)) == 50_000
    ones = (keys[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(50_000)
    assert not np.isin(sample_seeds(0, 50_000, 6), keys).any()
    repeated = sample_seeds(2, 10, 5)  # another epoch of 10 samples has its own augmentation
    assert not np.isin(repeated, sample_seeds(1, 10, 5)).any()


def test_step_keys_are_distinct_and_no_sample_keys():
    keys = [step_seed(step, 5) for step in range(1000)]
    assert len(set(keys)) == 1000
    assert not set(keys) & set(sample_seeds(0, 1000, 5).tolist())
    assert step_seed(7, 5) == keys[7] != step_seed(7, 6)
    with pytest.raises(ValueError, match="step is -1"):
        step_seed(-1, 5)


def test_huge_lengths_cost_nothing():
    length = 2**40
    found = permute(np.array([0, 1, length // 2, length - 1]), length, 0, 0)
    assert found.max() < length
    assert found.max() > 2**32  # not only the low bits move
    assert len(samples(10**9, 256, length + 1, 0)) == 256
    assert 0 <= permute(2**63 - 2, 2**63 - 1, 0, 0) < 2**63 - 1
    spread = samples(0, 20_000, length, 0) * 16 // length
    assert p_uniform(spread, 16) > P


def test_consecutive_huge_samples_are_far_apart():
    found = samples(0, 1000, 2**40, 1)
    assert min(abs(int(b) - int(a)) for a, b in pairwise(found)) > 2**20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length is 0, but it must be at least 1"),
        ({"length": -3}, "length is -3"),
        ({"length": 2**63}, "length is 9223372036854775808"),
        ({"epoch": -1}, "epoch is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"index": 10}, "index spans 10 to 10, but length 10 allows 0 to 9"),
        ({"index": -1}, "index spans -1 to -1"),
        ({"index": np.array([3, 12])}, "index spans 3 to 12"),
        ({"index": np.array([0.0, 1.0])}, "whole numbers, but it is float64"),
    ],
)
def test_permute_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        # unwrapped: the checks of types in conftest.py would refuse some of these first
        unwrap(permute)(**{"index": 0, "length": 10, "seed": 0, "epoch": 0} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": -1}, "step is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"step": 2**62, "batch": 4}, "beyond 2\\*\\*63"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_bad_place_in_the_stream_is_refused(arguments, message):
    good = {"step": 0, "batch": 8, "seed": 0} | arguments
    with pytest.raises(ValueError, match=message):
        samples(**good, length=10)
    with pytest.raises(ValueError, match=message):
        sample_seeds(**good)


def test_samples_refuses_an_empty_data_set():
    with pytest.raises(ValueError, match="length is 0"):
        samples(0, 8, 0, 0)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 100, 1000, 1601])
@pytest.mark.parametrize("block", [1, 3, 10, 50, 999, 5000])
def test_in_blocks_every_epoch_has_every_sample_once(length, block):
    # One batch that holds three epochs, and the same stream in pieces.
    whole = samples(0, 3 * length, length, seed=7, block=block)
    for epoch in range(3):
        assert sorted(whole[epoch * length : (epoch + 1) * length]) == list(range(length))
    pieces = [samples(step, 5, length, seed=7, block=block) for step in range(min(40, 3 * length // 5))]
    assert all(np.array_equal(piece, whole[5 * i : 5 * i + 5]) for i, piece in enumerate(pieces))


def test_in_blocks_few_places_are_read_at_a_time():
    length, block = 100_000, 100
    stream = samples(0, length, length, seed=0, block=block)
    for start in range(0, length, WINDOW * block):
        window = np.unique(stream[start : start + WINDOW * block] // block)
        assert len(window) <= 2 * WINDOW  # each block may lie across two, for all are moved on
    assert len(np.unique(samples(0, WINDOW * block, length, seed=0) // block)) > 700


def test_in_blocks_epochs_and_seeds_differ_and_neighbours_are_mixed():
    length, block = 6400, 20
    first, second = (samples(step, length, length, seed=0, block=block) for step in (0, 1))
    assert (first != second).mean() > 0.99
    assert (first != samples(0, length, length, seed=1, block=block)).mean() > 0.99
    assert (np.abs(np.diff(first)) == 1).mean() < 0.02
    # The window in which a sample comes is as good as independent of where it lies.
    place = np.argsort(first) // (WINDOW * block)
    assert abs(np.corrcoef(place, np.arange(length))[0, 1]) < 0.2


def test_a_negative_block_is_refused():
    with pytest.raises(ValueError, match="block is -1"):
        samples(0, 4, 10, seed=0, block=-1)

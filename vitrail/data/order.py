"""Which sample is the i-th of epoch e, for a seed: a keyed permutation of any length, in O(1) memory.

Training reads an endless stream of positions 0, 1, 2, ...: epoch 0 of the data set, then epoch 1, and so on, each
epoch in its own order. Step t takes positions [t * batch, (t + 1) * batch), so what it sees is a pure function of
(seed, step): processes and workers split a batch but cannot change it, and resuming needs no state but the step.

    permute(3, length=60_000, seed=0, epoch=2)             the 4th sample of the third epoch
    samples(step=100, batch=4096, length=60_000, seed=0)   (4096,) sample indices of the global batch
    samples(..., block=1000)                               the same, but neighbours stay near each other: for tars
    sample_seeds(step=100, batch=4096, seed=0)             (4096,) a 64-bit key each, for the augmentations
    step_seed(step=100, seed=0)                            a 64-bit key for what the step itself draws: dropout

The permutation is a Feistel network on the bits of the index (Luby and Rackoff, 1988) walked along its cycle until
it lands inside the data set (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). The mixer is
splitmix64's (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014). It is well mixed, but not
secret. A change of any constant here changes every run's order, so tests/test_order.py pins some values.
"""

from operator import index as as_int
from typing import overload

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

LIMIT = 2**63  # positions and indices are int64 outside this file
# Tiny domains need many rounds to forget where they started: with 24, all orders of up to 8 samples are equally
# likely as far as 240,000 epochs can show; with 16, those of 7 are not. Larger domains need fewer, but even so a
# batch of 4,096 takes a few milliseconds, about as long as decoding five photographs. (Above 8 samples, even orders
# may be more or less frequent than odd ones: a network whose halves both have two bits or more is an even order.)
ROUNDS = 24
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# What one seed decides must not share random numbers: each has a salt of its own, the digits of pi in turn.
ORDER_SALT = 0x243F6A8885A308D3
SAMPLE_SALT = 0x13198A2E03707344
STEP_SALT = 0xA4093822299F31D0
AUGMENT_SALT = 0x082EFA98EC4E6C89
MIX_SALT = 0x452821E638D01377
SPLIT_SALT = 0xBE5466CF34E90C6C
VIEW_SALT = 0xC0AC29B7C97C50DD
CORRUPT_SALT = 0x9216D5D98979FB1B
SUBSET_SALT = 0x3F84D5B5B5470917
WINDOW = 16  # blocks that are mixed with each other, where not all samples are


@overload
def permute(index: int, length: int, seed: int, epoch: int) -> np.int64: ...
@overload
def permute(index: NDArray[np.integer], length: int, seed: int, epoch: int) -> NDArray[np.int64]: ...
def permute(index: int | NDArray[np.integer], length: int, seed: int, epoch: int) -> np.int64 | NDArray[np.int64]:
    """The samples at places `index` of one epoch: a bijection of range(length) for each (seed, epoch).

    index: an int or integer array of any shape, each in 0 .. length - 1; the answer is int64 of that shape. Time and
    memory do not depend on `length` (1 .. 2**63 - 1). ValueError for a number out of its range.
    """
    _check("length", length, 1, LIMIT)
    _check("epoch", epoch, 0, LIMIT)
    places = np.asarray(index)
    if places.dtype.kind not in "iu":
        raise ValueError(f"index is of {places.dtype}; it must be whole numbers.")
    if places.size and (int(places.min()) < 0 or int(places.max()) >= length):
        raise ValueError(f"index spans {places.min()} to {places.max()}, but length {length} allows 0 to {length - 1}.")
    keys = _keys(seed, ORDER_SALT, np.array([epoch], np.uint64))
    found = _walk(places.astype(np.uint64).reshape(-1), length, keys)
    return found.astype(np.int64).reshape(places.shape)[()]


def samples(step: int, batch: int, length: int, seed: int, block: int = 0) -> NDArray[np.int64]:
    """The sample indices of the global batch of one step, int64 (batch,).

    A batch may straddle epochs, and holds several when it is larger than the data set; nothing is dropped.
    block: 0 mixes all samples. Otherwise blocks of that many neighbours come in random order, and only WINDOW of them
    are mixed at a time: what lies together in a tar is read together, and few tars are read at once.
    ValueError for a number out of its range, or if the stream would pass 2**63 positions.
    """
    _check("length", length, 1, LIMIT)
    _check("block", block, 0, LIMIT)
    epoch, place = divmod(_start(step, batch), length)
    run = np.uint64(place) + np.arange(batch, dtype=np.uint64)
    epochs = np.uint64(epoch) + run // np.uint64(length)
    if epochs[0] == epochs[-1]:
        epochs = epochs[:1]  # one key for all: nearly every batch, and half the time
    keys = _keys(seed, ORDER_SALT, epochs)
    places = run % np.uint64(length)
    found = _near(places, length, keys, block) if 0 < block < length else _walk(places, length, keys)
    return found.astype(np.int64)


def sample_seeds(step: int, batch: int, seed: int) -> Words:
    """One 64-bit key for each position of the global batch of one step, uint64 (batch,): seeds its augmentation. A pure
    function of (seed, position in the stream); no two positions of a seed share a key."""
    positions = np.uint64(_start(step, batch)) + np.arange(batch, dtype=np.uint64)
    return _keys(seed, SAMPLE_SALT, positions)


def view_keys(key: int, view: int) -> int:
    """The key of one of a sample's views, from the sample's own, which is that of the first view."""
    return key if view == 0 else int(_keys(key, VIEW_SALT, np.array([view], np.uint64))[0])


def step_seed(step: int, seed: int) -> int:
    """A 64-bit key for the random draws of a whole step, such as dropout's. ValueError for a bad step or seed."""
    _check("step", step, 0, LIMIT)
    return int(_keys(seed, STEP_SALT, np.array([step], np.uint64))[0])


def corruption_key(number: int, seed: int) -> int:
    """A 64-bit key for the random draws of one corruption at one strength, which `number` stands for."""
    return int(_keys(seed, CORRUPT_SALT, np.array([number], np.uint64))[0])


def _check(name: str, value: int, low: int, stop: int) -> None:
    """Raises ValueError unless low <= value < stop."""
    if not low <= value < stop:
        raise ValueError(f"{name} is {value}, but it must be at least {low} and below {stop}.")


def _start(step: int, batch: int) -> int:
    """The stream position where a step's batch begins. Raises ValueError for a bad step or batch."""
    _check("step", step, 0, LIMIT)
    _check("batch", batch, 1, LIMIT)
    start = as_int(step) * as_int(batch)  # Python's integers: NumPy's would wrap around in silence
    if start + batch > LIMIT:
        raise ValueError(f"step {step} of batch {batch} ends at position {start + batch}, beyond 2**63; lower one.")
    return start


def _mix(words: Words) -> Words:
    """splitmix64's finaliser, a bijection of 64 bits in which each input bit flips half of the output bits.

    Takes and gives arrays of at least one dimension: NumPy warns when the product of two scalars wraps around.
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _keys(seed: int, salt: int, counters: Words) -> Words:
    """A 64-bit key for each (seed, counter), the shape of `counters`; distinct counters give distinct keys."""
    _check("seed", seed, 0, 2**64)
    # The seed is mixed before the counter is added; otherwise seed s + GOLDEN would be seed s, one epoch later.
    base = _mix(np.array([as_int(seed) ^ salt], np.uint64) + GOLDEN)
    return _mix(base + (counters + np.uint64(1)) * GOLDEN)


def _near(places: Words, length: int, keys: Words, block: int) -> Words:
    """Permutes places (n,) of range(length) under keys (n,) or (1,), WINDOW blocks of neighbours at a time.

    First within windows of places, then whole blocks; what is no whole block stays at the end. Last all are moved on by
    a number that differs from epoch to epoch, so that the samples at the end differ, too.
    """
    window = block * WINDOW
    number, inside = places // np.uint64(window), places % np.uint64(window)
    inner = _mix(keys + (number + np.uint64(1)) * GOLDEN)
    last = number == np.uint64(length // window)
    mixed = inside.copy()
    for chosen, size in ((~last, window), (last, length % window)):
        if chosen.any():
            mixed[chosen] = _walk(inside[chosen], size, inner[chosen])
    mixed += number * np.uint64(window)
    blocks = length // block
    whole = mixed < np.uint64(blocks * block)
    each = np.broadcast_to(keys, places.shape)
    moved = _walk(mixed[whole] // np.uint64(block), blocks, each[whole]) * np.uint64(block)
    mixed[whole] = moved + mixed[whole] % np.uint64(block)
    return (mixed + _mix(_mix(each) + GOLDEN) % np.uint64(length)) % np.uint64(length)


def _walk(places: Words, length: int, keys: Words) -> Words:
    """Permutes places (n,) of range(length) under keys (n,) or (1,).

    The network permutes a power of two, at most twice the length; a place that lands outside is sent on until it
    lands inside. Its cycle leads back to where it came from, so that ends, after fewer than two turns on average.
    """
    bits = max(2, (length - 1).bit_length())  # a network needs two halves of at least one bit
    # The keys of the rounds, (ROUNDS, n) or (ROUNDS, 1): the next outputs of splitmix64 generators that start at keys.
    rounds = _mix(keys + np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None] * GOLDEN)
    found = _feistel(places, bits, rounds)
    outside = np.flatnonzero(found >= np.uint64(length))
    while outside.size:
        found[outside] = _feistel(found[outside], bits, rounds if keys.size == 1 else rounds[:, outside])
        outside = outside[found[outside] >= np.uint64(length)]
    return found


def _feistel(words: Words, bits: int, rounds: Words) -> Words:
    """A keyed bijection of range(2**bits), 2 <= bits <= 63, on words (n,) under keys (ROUNDS, n) or (ROUNDS, 1)."""
    low_bits = np.uint64(bits // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << np.uint64(bits - bits // 2)) - np.uint64(1)
    low, high = words & low_mask, words >> low_bits
    for turn in range(0, ROUNDS, 2):
        low = low ^ (_mix(rounds[turn] + high) & low_mask)
        high = high ^ (_mix(rounds[turn + 1] + low) & high_mask)
    return (high << low_bits) | low

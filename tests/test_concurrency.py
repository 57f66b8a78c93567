"""Many threads may use one model or one Pipeline at once: no error, and the answers of one thread alone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_pipeline import pipeline

from vitrail.runtime.inference import prepared

THREADS, SIZES = 4, [(8, 8), (8, 12), (20, 8), (16, 16)]
ARRAYS = [np.random.default_rng(n).integers(0, 256, (*SIZES[n % 4], 3), np.uint8) for n in range(8)]


@pytest.fixture(params=[1, 2], ids=["one core", "two cores"])
def cores(request):
    """How many of torch's threads a caller has; with more than one, shares of a batch are computed side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def at_once(work, passes):
    """work(n) for each n, by THREADS threads that begin together. Their results, in order."""
    start = threading.Barrier(THREADS, timeout=60)

    def mine(thread):
        start.wait()
        return [work(n) for n in range(thread, passes, THREADS)]

    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(mine, range(THREADS)))
    return [parts[n % THREADS][n // THREADS] for n in range(passes)]


def by_model(predict):
    """A forward pass of the model itself, and of its copy for inference."""
    model, fast = predict.task.model, prepared(predict.task.model)
    batches = [torch.from_numpy(pixels).permute(2, 0, 1).float().repeat(3, 1, 1, 1) / 255 for pixels in ARRAYS]
    work = lambda n: torch.stack([model(batches[n % 8]), fast(batches[n % 8])]).numpy()  # noqa: E731
    return torch.no_grad()(work)


def by_pipeline(predict):
    """A call with images of several sizes; Pillow's own are the same objects in every thread."""
    given = [Image.fromarray(image) if n % 3 == 0 else image for n, image in enumerate(ARRAYS)]

    def work(n):
        found = predict([given[n % 8], given[(n + 3) % 8], given[(3 * n) % 8]], top=7)
        return np.array([[a.probability for a in sorted(answers, key=lambda a: a.index)] for answers in found])

    return work


def compiled():
    """As a compiled task is used: in place, whatever mode it is in."""
    predict = pipeline(dropout=0.5)
    predict.task.train().model.blocks[0]._compiled_call_impl = predict.task.model.blocks[0]._call_impl
    return by_pipeline(predict)


WAYS = {
    "model": lambda: by_model(pipeline(dropout=0.5)),
    "pipeline": lambda: by_pipeline(pipeline(dropout=0.5)),
    "int8": lambda: by_pipeline(replace(pipeline(), int8=True)),
    "compiled": compiled,
}


@pytest.mark.parametrize("passes", [96, pytest.param(2_500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", WAYS)
def test_threads_get_the_answers_of_one_alone(way, passes, cores):
    alone = [WAYS[way]()(n) for n in range(24)]
    found = at_once(WAYS[way](), passes)  # a fresh one: the first calls meet, too
    assert [n for n, one in enumerate(found) if not np.allclose(one, alone[n % 24], atol=1e-5)] == []

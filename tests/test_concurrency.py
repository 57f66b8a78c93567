"""Many threads may use one model or one Pipeline at once: no error, and the answers of one thread alone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_pipeline import pipeline

from vitrail.evaluate.evaluator import evaluating
from vitrail.runtime.inference import prepared
from vitrail.runtime.threads import shared

SIZES = [(8, 8), (8, 12), (20, 8), (16, 16)]
THREADS = 4


@pytest.fixture(params=[1, 2], ids=["one core", "two cores"])
def cores(request):
    """How many of torch's threads a caller has; with more than one, shares of a batch are computed side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
    shared.cache_clear()


def at_once(work, passes):
    """work(n) for each n, by THREADS threads that begin together. Their results, in order."""
    start = threading.Barrier(THREADS, timeout=60)

    def mine(thread):
        start.wait()
        return [work(n) for n in range(thread, passes, THREADS)]

    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(mine, range(THREADS)))
    return [parts[n % THREADS][n // THREADS] for n in range(passes)]


def images(kind=np.uint8):
    """Two of each size."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*SIZES[n % 4], 3), np.uint8) for n in range(8)]


def by_model(predict):
    """A forward pass of the model itself, and of its copy for inference."""
    fast, batches = prepared(predict.task.model), []
    for image in images():
        batches.append(torch.from_numpy(image).permute(2, 0, 1).float()[None].repeat(3, 1, 1, 1) / 255)

    @torch.no_grad()
    def work(n):
        return torch.stack([predict.task.model(batches[n % 8]), fast(batches[n % 8])]).double().numpy()

    return work


def by_pipeline(predict):
    """A call with images of all sizes; Pillow's own are the same objects in every thread."""
    given = images()
    given = [Image.fromarray(image) if n % 3 == 0 else image for n, image in enumerate(given)]

    def work(n):
        found = predict([given[n % 8], given[(n + 3) % 8], given[(3 * n) % 8]], top=7)
        return np.array(
            [[answer.probability for answer in sorted(answers, key=lambda a: a.index)] for answers in found]
        )

    return work


WAYS = {
    "model": lambda: by_model(pipeline(dropout=0.5)),
    "pipeline": lambda: by_pipeline(pipeline(dropout=0.5)),
    "int8": lambda: by_pipeline(replace(pipeline(), int8=True)),
    "padded": lambda: by_pipeline(pipeline(resize="pad")),
}


def agree(way, passes):
    """How many passes differ from those of one thread alone by more than rounding."""
    work = WAYS[way]()
    alone = [work(n) for n in range(24)]
    found = at_once(WAYS[way](), passes)  # a fresh one: the first calls meet, too
    return sum(not np.allclose(one, alone[n % 24], atol=1e-5) for n, one in enumerate(found))


@pytest.mark.parametrize("way", WAYS)
def test_threads_get_the_answers_of_one_alone(way, cores):
    assert agree(way, 96) == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_twenty_thousand_passes(way, cores):
    assert agree(way, 2_500) == 0


def test_a_task_in_training_is_evaluated_by_several_threads_and_trains_on_afterwards():
    task, wrong = pipeline(dropout=0.5).task.train(), []
    task.model.norm.eval()  # a part that is frozen

    def work(n):
        with evaluating(task):
            wrong.extend(part for part in task.modules() if part.training)

    at_once(work, 200)
    assert wrong == []
    assert [part for part in task.modules() if not part.training] == [task.model.norm]


def test_a_compiled_task_answers_threads_without_dropout_whatever_its_mode():
    predict = pipeline(dropout=0.5)
    predict.task.model.blocks[0]._compiled_call_impl = predict.task.model.blocks[0]._call_impl  # as compile() marks it
    predict.task.train()
    work = by_pipeline(predict)
    alone = [work(n) for n in range(24)]
    found = at_once(work, 96)
    assert all(np.allclose(one, alone[n % 24], atol=1e-5) for n, one in enumerate(found))
    assert predict.task.training


def test_a_head_that_is_replaced_while_threads_call_gives_old_or_new_answers():
    predict = pipeline()
    work, heads = by_pipeline(predict), [predict.task.model.head, torch.nn.Linear(16, 7)]
    known = []
    for head in heads:
        predict.task.model.head = head
        known.append([work(n) for n in range(24)])

    def swapping(n):
        if n % 5 == 0:
            predict.task.model.head = heads[n % 2]
        return work(n)

    for n, one in enumerate(at_once(swapping, 96)):
        assert any(np.allclose(one, answers[n % 24], atol=1e-5) for answers in known)

"""The batch law of pre-training: a step in parts, on cores and processes, is the step of the whole batch."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from processes import alone, bits, evaluations, losses, trained
from reference import perturb
from small_runs import crash_at, goes_on, small, start
from test_steps import distance, gradients

from vitrail.batch import Batch
from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.evaluate.watch import Watch
from vitrail.models import vit
from vitrail.runtime.gradients import gradient
from vitrail.tasks.mae import MaeConfig
from vitrail.tasks.patches import PatchesConfig
from vitrail.tasks.views import ViewsConfig
from vitrail.train import Backward

MODEL = vit.Config((16, 16), (4, 4), 3, 16, 2, 2, 32, 0, qkv_bias=False)
NOISY = replace(MODEL, dropout=0.2, attention_dropout=0.1, drop_path=0.3)
TASKS = {
    "patches": PatchesConfig(),
    "mae": MaeConfig(depth=1, width=32),
    "views": ViewsConfig(local_views=1, hidden=16, width=8, directions=16),
}
every_task = pytest.mark.parametrize("config", TASKS.values(), ids=TASKS)


def task(config, model=MODEL, dtype=torch.float64):
    owner = config.task(model.build("cpu"), Preprocessing((16, 16), (0.5,) * 3, (0.3,) * 3), ())
    return perturb(owner, dtype=dtype).train()


def batch(count, seed=0):
    draw = np.random.default_rng(seed)
    images = torch.from_numpy(draw.integers(0, 256, (count, 3, 16, 16), np.uint8))
    return Batch(images=images, keys=torch.from_numpy(draw.integers(-(2**63), 2**63, count)))


def step(owner, parts, cores=1, exact=0):
    """(metrics, the gradient of each parameter) of a step in these parts."""
    total = sum(map(len, parts))
    metrics = gradient(owner, cores, 1, exact)(parts, Backward(total, nullcontext()))
    return {name: float(value) for name, value in metrics.items()}, gradients(owner)


@every_task
@pytest.mark.parametrize(
    ("model", "dtype", "tolerance"),
    [(MODEL, torch.float64, 1e-12), (NOISY, torch.float64, 1e-12), (NOISY, torch.float32, 1e-6)],
)
def test_a_step_in_parts_has_the_gradient_of_the_whole_batch(config, model, dtype, tolerance):
    given = batch(24)
    expected = step(task(config, model, dtype), [given])
    largest = max(1.0, *(float(grad.abs().max()) for grad in expected[1].values()))
    for count, cores in ((2, 1), (4, 1), (8, 1), (1, 2), (2, 2)):
        metrics, found = step(task(config, model, dtype), given.split(24 // count), cores)
        assert distance(found, expected[1]) < tolerance * largest
        # What is measured of the images of a part is no mean over them.
        apart = set() if config.kind == "views" else {"explained", "spread", "said", "variety"}
        wanted = {name: value for name, value in expected[0].items() if name not in apart}
        assert {name: metrics[name] for name in wanted} == pytest.approx(wanted, abs=10 * tolerance, rel=10 * tolerance)


@pytest.mark.parametrize("how", [{"pool": "avg", "norm_first": False}, {"pool": "map"}, {"representation": 8}], ids=str)
@every_task
def test_all_that_is_trained_has_a_gradient(config, how):
    """Which several processes wait for. What follows the tokens is read by views alone."""
    owner = task(config, replace(MODEL, **how))
    trained = {name for name, parameter in owner.named_parameters() if parameter.requires_grad}
    found = step(owner, [batch(16)])[1]
    assert {name for name, grad in found.items() if grad is not None} == trained
    behind = {name for name in found if name.startswith(("model.fc_norm", "model.attn_pool", "model.pre_logits"))}
    assert behind
    assert found.keys() - trained == (set() if config.kind == "views" else behind)


@every_task
def test_uneven_parts_and_their_order_change_nothing(config):
    given = batch(23)
    expected = step(task(config), [given])[1]
    parts = [Batch(**{name: given[name][a:b] for name in given}) for a, b in ((0, 1), (1, 12), (12, 23))]
    for some in (parts, parts[::-1]):
        assert distance(step(task(config), some)[1], expected) < 1e-12


def test_parts_by_themselves_would_be_another_objective():
    """What every mean over micro-batches computes."""
    given = batch(24)
    sums = [step(task(TASKS["views"]), [part])[1] for part in given.split(12)]
    apart = {name: (sums[0][name] + sums[1][name]) / 2 for name in sums[0]}
    assert distance(apart, step(task(TASKS["views"]), [given])[1]) > 1e-4


@every_task
def test_exact_steps_are_the_same_bits_in_any_order_and_on_any_cores(config):
    parts = batch(24).split(3)
    expected = step(task(config, NOISY, torch.float32), parts, exact=8)
    for some, cores in ((parts[::-1], 1), (parts, 2)):
        found = step(task(config, NOISY, torch.float32), some, cores, exact=8)
        assert found[0] == expected[0]
        assert all(torch.equal(found[1][name], grad) for name, grad in expected[1].items())
    close = step(task(config, NOISY, torch.float32), [batch(24)])[1]
    assert distance(expected[1], close) < 1e-5 * max(1.0, *(float(grad.abs().max()) for grad in close.values()))


def pretrained(config, **changes):
    """Eight steps of a tiny model that has no head."""
    run = small(task=config, augment=Augment(crop="shift", shift=1), evaluate=(Watch(images=40, bank=60),), batch=16)
    often = {"duration": "8 steps", "checkpoint_every": "3 steps", "evaluate_every": "4 steps"}
    return replace(run, model=replace(run.model, classes=0), **often, **changes)


@every_task
@pytest.mark.usefixtures("quick")
def test_a_run_that_was_killed_goes_on_bit_for_bit(config, tmp_path):
    run = pretrained(config, ema=0.9, micro_batch=8)
    start(run, tmp_path / "whole").fit()
    crash_at(start(run, tmp_path / "cut"), 5)
    assert goes_on(tmp_path).done == 8


ALSO = """
from dataclasses import replace
from vitrail.evaluate.watch import Watch
from vitrail.tasks.mae import MaeConfig
from vitrail.tasks.patches import PatchesConfig
from vitrail.tasks.views import ViewsConfig

labelled = tiny

def tiny(data):
    run = labelled(data)
    model = replace(run.model, patch_size=(4, 4), MODEL)
    return replace(run, model=model, augment=Augment("shift", shift=1), task=TASK)
"""


def place(here, config, model=""):
    with (here / "r.py").open("a") as file:
        file.write(ALSO.replace("TASK", repr(config)).replace("MODEL", model))


def test_views_on_two_processes_are_the_same_bits_though_they_have_not_as_many_parts(here):
    place(here, TASKS["views"])
    few = ["--exact", "True", "--duration", "6 steps", "--evaluate-every", "3 steps"]
    alone(here, "one", *few)  # in five micro-batches
    trained(here, 2, "two", *few, "--shard", "0")
    assert bits(here, "two", 6) == bits(here, "one", 6)
    np.testing.assert_array_equal(losses(here, "two"), losses(here, "one"))
    assert evaluations(here, "two") == evaluations(here, "one")


@pytest.mark.slow
@every_task
@pytest.mark.parametrize("shard", [1, 0])
def test_two_processes_pre_train_as_one(here, config, shard):
    """A model with a norm behind its pooling, which patches and MAE have no use for."""
    place(here, config, "pool='avg', norm_first=False")
    alone(here, "one", "--micro-batch", "6")
    trained(here, 2, "two", "--micro-batch", "6", "--shard", str(shard))
    np.testing.assert_allclose(losses(here, "two"), losses(here, "one"), rtol=0, atol=1e-6)
    first, second = (evaluations(here, out)[-1]["evaluation"] for out in ("one", "two"))
    assert second == pytest.approx(first, abs=1e-3)


@pytest.mark.slow
@every_task
@pytest.mark.parametrize(("world", "shard"), [(2, 1), (3, 0)])
def test_exact_pre_training_is_the_same_bits(here, config, world, shard):
    place(here, config)
    alone(here, "one", "--exact", "True")
    trained(here, world, "many", "--exact", "True", "--shard", str(shard))
    assert bits(here, "many") == bits(here, "one")

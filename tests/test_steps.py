"""Steps of training in float64 against the equations written out, and against torch.optim: schedule, decay, clipping,
momentum, bias correction, the average of the weights, accumulated gradients. `pytest -rP` prints what was measured."""

import copy
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import vit
from vitrail.optim.build import Config, build, clip, set_lr
from vitrail.optim.ema import Ema
from vitrail.optim.schedule import Schedule, multiplier
from vitrail.runtime.threads import Replicas
from vitrail.tasks.classify import Classify
from vitrail.train import accumulate as trainers

TOLERANCE = 1e-12
SCHEDULE = Schedule("cosine", warmup="2 steps", end=0.1)
CONFIGS = {
    "adamw": Config(lr=0.02, weight_decay=0.3, clip=None, schedule=SCHEDULE),
    "adamw, clipped": Config(lr=0.02, weight_decay=0.3, clip=0.05, schedule=SCHEDULE),
    "sgd, momentum": Config("sgd", lr=0.1, weight_decay=0.0, clip=None, schedule=SCHEDULE),
    "sgd, clipped": Config("sgd", lr=0.1, weight_decay=0.0, clip=0.05, schedule=SCHEDULE),
}
KERNELS = {
    "model.patch_embed.proj.weight",
    "model.head.weight",
    *(f"model.blocks.{i}.{layer}.weight" for i in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
}


def tiny(**noise):
    """Without the bias of k: it changes no softmax, so its gradient is rounding alone, which Adam would blow up by
    1 / eps."""
    torch.manual_seed(0)
    shape = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "classes": 5}
    model = vit.ViT(vit.Config((8, 8), (4, 4), 1, qkv_bias=False, **shape, **noise))
    for parameter in model.parameters():  # all of them from a value and with a gradient that is not 0
        nn.init.normal_(parameter, std=0.3)
    return Classify(model, Preprocessing((8, 8), (0.4,), (0.3,))).double()


def batch(size, seed=0):
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.integers(0, 256, (size, 1, 8, 8), np.uint8))
    targets = torch.from_numpy(random.integers(0, 5, size))
    return Batch(images=images, targets=targets, keys=torch.from_numpy(random.integers(0, 2**63, size)))


def factor(step, total):
    """Two steps of warm-up, then the cosine from 1 to 0.1."""
    return step / 2 if step < 2 else 0.55 + 0.45 * math.cos(math.pi * (step - 2) / (total - 2))


def train(task, config, steps, total=20, ema=None):
    """The loop's order: set the rate, add up gradients, clip, step."""
    optimizer = build(task, config)
    for step in range(1, steps + 1):  # not from 0, where the rate is 0
        set_lr(optimizer, config, multiplier(config.schedule, step, total))
        task(batch(6, step))[0].backward()
        clip(task.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        if ema:
            ema.update(step)
    return {name: parameter.detach() for name, parameter in task.named_parameters()}


def gradients(task, weights, given):
    """{name: array} of the loss at the weights, which are arrays; the task's own weights have no part in it."""
    inputs = {name: torch.from_numpy(value).clone().requires_grad_() for name, value in weights.items()}
    loss, _ = torch.func.functional_call(task, inputs, (given,))
    return dict(zip(inputs, (g.numpy() for g in torch.autograd.grad(loss, list(inputs.values()))), strict=True))


def train_by_equations(task, config, steps, total=20):
    """The same in NumPy: Loshchilov and Hutter's algorithm 2 (decoupled decay), or momentum without dampening."""
    w = {name: parameter.detach().numpy().copy() for name, parameter in task.named_parameters()}
    m, v = ({name: np.zeros_like(value) for name, value in w.items()} for _ in range(2))
    history = [{name: value.copy() for name, value in w.items()}]
    for t in range(1, steps + 1):
        lr, g = config.lr * factor(t, total), gradients(task, w, batch(6, t))
        if config.clip:
            norm = math.sqrt(sum(float((value**2).sum()) for value in g.values()))
            assert norm > config.clip
            g = {name: value * (config.clip / (norm + 1e-6)) for name, value in g.items()}
        for name in w:
            if config.name == "sgd":
                m[name] = 0.9 * m[name] + g[name]
                w[name] = w[name] - lr * m[name]
                continue
            m[name] = 0.9 * m[name] + 0.1 * g[name]
            v[name] = 0.999 * v[name] + 0.001 * g[name] ** 2
            if name in KERNELS:
                w[name] = w[name] - lr * config.weight_decay * w[name]
            w[name] = w[name] - lr * (m[name] / (1 - 0.9**t)) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-8)
        history.append({name: value.copy() for name, value in w.items()})
    return history


def largest_difference(what, found, expected):
    """Over all tensors, absolute; printed, so that a report can quote it."""
    assert found.keys() == expected.keys()
    pairs = ((found[name], torch.as_tensor(expected[name])) for name in found)
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    print(f"{what}: largest difference {difference:.1e}")
    return difference


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_steps_equal_the_equations(name, steps):
    config, task = CONFIGS[name], tiny()
    expected = train_by_equations(task, config, steps)
    found = train(task, config, steps)
    assert largest_difference(f"{name}, {steps} steps", found, expected[-1]) < TOLERANCE
    assert all(not np.array_equal(found[name].numpy(), expected[0][name]) for name in found)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_steps_equal_torchs_optimisers_and_schedules(name, steps):
    """torch's plain loops over tensors (foreach and fused off), its clipping and its schedulers."""
    config, task = CONFIGS[name], tiny()
    twin = copy.deepcopy(task)
    named = dict(twin.named_parameters())
    kernels, rest = [named.pop(name) for name in KERNELS], list(named.values())
    plain = {"lr": config.lr, "foreach": False, "fused": False}
    if config.name == "sgd":
        optimizer = torch.optim.SGD([*kernels, *rest], momentum=0.9, **plain)
    else:
        decayed = {"params": kernels, "weight_decay": config.weight_decay}
        optimizer = torch.optim.AdamW([decayed, {"params": rest, "weight_decay": 0.0}], **plain)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step + 1, 20))
    for step in range(1, steps + 1):
        twin(batch(6, step))[0].backward()
        if config.clip:
            nn.utils.clip_grad_norm_(twin.parameters(), config.clip, foreach=False)
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
    found, expected = train(task, config, steps), {name: p.detach() for name, p in twin.named_parameters()}
    assert largest_difference(f"{name}, {steps} steps, torch.optim", found, expected) < TOLERANCE


@pytest.mark.parametrize(("decay", "warm"), [(0.9, False), (0.9999, True)])
def test_the_average_over_steps_of_training_is_its_closed_form(decay, warm):
    task, config = tiny(), CONFIGS["adamw"]
    history = train_by_equations(task, config, 5)
    ema = Ema(task, decay, warm)
    train(task, config, 5, ema=ema)
    shares = [min(decay, (1 + t) / (10 + t)) if warm else decay for t in range(1, 6)]
    expected = {
        name: sum(
            weights[name] * (1 - shares[t - 1] if t else 1) * math.prod(shares[t:]) for t, weights in enumerate(history)
        )
        for name in history[0]
    }
    assert largest_difference(f"average {decay}, warm {warm}, 5 steps", ema.tensors, expected) < TOLERANCE


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "rsqrt"])
def test_the_learning_rate_of_every_step_is_its_closed_form(kind):
    """Warm-up 100, cool-down 150 and the end 0.01, of 1000 steps."""
    schedule = Schedule(kind, warmup="100 steps", cooldown="150 steps", timescale="200 steps", end=0.01)
    steps = np.arange(1001)
    u = np.maximum(steps - 100, 0)
    p = u / 900
    falling = {
        "constant": 1 + 0 * p,
        "linear": 1 - p,
        "cosine": np.cos(np.pi * p / 2) ** 2,
        "rsqrt": (1 + u / 200) ** -0.5,
    }
    curve = falling[kind] * 0.99 + 0.01 if kind in ("linear", "cosine") else falling[kind]
    left = np.minimum(1, (1000 - steps) / 150)
    expected = np.minimum(1, steps / 100) * (left * curve + (1 - left) * 0.01)
    task, config = nn.Linear(1, 1), Config(lr=0.003, schedule=schedule)
    optimizer, found = build(task, config), []
    for step in range(1001):
        set_lr(optimizer, config, multiplier(schedule, step, 1000))
        found.append([group["lr"] for group in optimizer.param_groups])
    difference = float(np.abs(np.array(found) - 0.003 * expected[:, None]).max())
    print(f"{kind}: largest difference {difference:.1e} over 1000 steps")
    assert difference < TOLERANCE


def test_without_gradients_kernels_shrink_by_the_product_of_their_steps_and_nothing_else_moves():
    task, config = tiny(), CONFIGS["adamw"]
    before = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
    optimizer = build(task, config)
    for step in range(1, 6):
        for parameter in task.parameters():
            parameter.grad = torch.zeros_like(parameter)
        set_lr(optimizer, config, multiplier(config.schedule, step, 20))
        optimizer.step()
    product = math.prod(1 - 0.02 * factor(step, 20) * 0.3 for step in range(1, 6))
    found = {name: parameter.detach() for name, parameter in task.named_parameters()}
    expected = {name: value * product if name in KERNELS else value for name, value in before.items()}
    assert largest_difference("decay alone, 5 steps", found, expected) < TOLERANCE
    assert all(torch.equal(found[name], before[name]) for name in before.keys() - KERNELS)


@pytest.mark.parametrize("limit", [0.01, 1e9])
def test_clipping_is_one_factor_for_all_gradients(limit):
    task = tiny()
    expected = gradients(task, {name: p.detach().numpy() for name, p in task.named_parameters()}, batch(6))
    norm = math.sqrt(sum(float((value**2).sum()) for value in expected.values()))
    task(batch(6))[0].backward()
    assert float(clip(task.parameters(), limit)) == pytest.approx(norm, rel=TOLERANCE)
    found = {name: parameter.grad for name, parameter in task.named_parameters()}
    scaled = {name: value * min(1, limit / (norm + 1e-6)) for name, value in expected.items()}
    assert largest_difference(f"clip {limit}", found, scaled) < TOLERANCE


def accumulate(task, given, micro, cores=1):
    """The Trainer's own accumulation over parts of the batch, each in a share for each core."""
    return trainers(Replicas(task, cores), given.split(micro), len(given), nullcontext())


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2, 3, 6, 7, 8])
def test_gradients_accumulated_over_uneven_parts_are_those_of_the_whole_batch(micro, cores):
    whole, parts, given = tiny(), tiny(), batch(7)
    whole(given)[0].backward()
    metrics = accumulate(parts, given, micro, cores)
    assert float(metrics["loss"]) == pytest.approx(float(whole(given)[1]["loss"]), rel=1e-12)
    found, expected = ({name: p.grad for name, p in task.named_parameters()} for task in (parts, whole))
    assert largest_difference(f"7 images in parts of {micro}, {cores} cores", found, expected) < TOLERANCE


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("micro", [2, 3, 4, 7])
@pytest.mark.parametrize("noise", ["dropout", "attention_dropout", "drop_path"])
def test_what_is_drawn_does_not_depend_on_how_a_batch_is_split(noise, micro, cores):
    whole, parts, given = tiny(**{noise: 0.3}), tiny(**{noise: 0.3}), batch(7)
    torch.manual_seed(1)
    accumulate(whole, given, 7)
    torch.manual_seed(2)
    accumulate(parts, given, micro, cores)
    found, expected = ({n: p.grad for n, p in task.named_parameters()} for task in (parts, whole))
    assert largest_difference(f"{noise}, parts of {micro}, {cores} cores", found, expected) < TOLERANCE
    plain = tiny()
    accumulate(plain, given, 7)
    assert largest_difference(noise, {n: p.grad for n, p in plain.named_parameters()}, expected) > 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_after_accumulation_is_that_of_the_whole_batch_clipped_once(name):
    whole, parts, given, config = tiny(), tiny(), batch(7), CONFIGS[name]
    for task, micro in ((whole, 7), (parts, 3)):
        optimizer = build(task, config)
        accumulate(task, given, micro)
        clip(task.parameters(), config.clip)
        optimizer.step()
    found, expected = ({name: p.detach() for name, p in task.named_parameters()} for task in (parts, whole))
    assert largest_difference(f"{name}, 7 = 3 + 3 + 1", found, expected) < TOLERANCE

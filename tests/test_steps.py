"""Steps of training in float64 against the equations written out and torch.optim: schedule, decay, clipping, momentum,
bias correction, accumulated gradients."""

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
from vitrail.optim.schedule import Schedule, multiplier
from vitrail.runtime.gradients import Alone
from vitrail.tasks.classify import Classify
from vitrail.train import Backward

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
    model = vit.ViT(vit.Config((8, 8), (4, 4), 1, 16, 2, 2, 32, 5, qkv_bias=False, **noise))
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


def train(task, config, steps, total=20):
    """The loop's order: set the rate, add up gradients, clip, step."""
    optimizer = build(task, config)
    for step in range(1, steps + 1):  # not from 0, where the rate is 0
        set_lr(optimizer, config, multiplier(config.schedule, step, total))
        task(batch(6, step))[0].backward()
        clip(task.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
    return weights(task)


def train_by_equations(task, config, steps, total=20):
    """The same, written out: Loshchilov and Hutter's algorithm 2 (decoupled decay), or momentum without dampening."""
    w = {name: tensor.clone() for name, tensor in weights(task).items()}
    m = v = dict.fromkeys(w, 0.0)
    for t in range(1, steps + 1):
        inputs = {name: tensor.clone().requires_grad_() for name, tensor in w.items()}
        loss, _ = torch.func.functional_call(task, inputs, (batch(6, t),))
        g = dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))
        if config.clip:
            norm = math.sqrt(sum(float((value**2).sum()) for value in g.values()))
            assert norm > config.clip
            g = {name: value * (config.clip / (norm + 1e-6)) for name, value in g.items()}
        lr = config.lr * factor(t, total)
        if config.name == "sgd":
            m = {name: 0.9 * m[name] + g[name] for name in w}
            w = {name: w[name] - lr * m[name] for name in w}
            continue
        m = {name: 0.9 * m[name] + 0.1 * g[name] for name in w}
        v = {name: 0.999 * v[name] + 0.001 * g[name] ** 2 for name in w}
        for name in w:
            decayed = w[name] - lr * config.weight_decay * w[name] if name in KERNELS else w[name]
            w[name] = decayed - lr * (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.999**t)).sqrt() + 1e-8)
    return w


def weights(task):
    return {name: parameter.detach() for name, parameter in task.named_parameters()}


def gradients(task):
    return {name: parameter.grad for name, parameter in task.named_parameters()}


def distance(found, expected):
    """The largest difference over all tensors."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).abs().max()) for name in found)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_steps_equal_the_equations(config):
    found, before = train(tiny(), config, 5), weights(tiny())
    assert distance(found, train_by_equations(tiny(), config, 5)) < TOLERANCE
    assert not any(torch.equal(found[name], before[name]) for name in found)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_steps_equal_torchs_optimisers_clipping_and_schedules(config):
    task = tiny()
    rest = dict(task.named_parameters())
    kernels, plain = [rest.pop(name) for name in KERNELS], {"lr": config.lr, "foreach": False, "fused": False}
    if config.name == "sgd":
        optimizer = torch.optim.SGD([*kernels, *rest.values()], momentum=0.9, **plain)
    else:
        groups = [{"params": kernels, "weight_decay": 0.3}, {"params": list(rest.values()), "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, **plain)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step + 1, 20))
    for step in range(1, 6):
        task(batch(6, step))[0].backward()
        if config.clip:
            nn.utils.clip_grad_norm_(task.parameters(), config.clip, foreach=False)
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
    assert distance(train(tiny(), config, 5), weights(task)) < TOLERANCE


def accumulate(task, given, micro, cores=1):
    """The Trainer's own accumulation over parts of the batch, each in a share for each core."""
    return Alone(task, cores)(given.split(micro), Backward(len(given), nullcontext()))


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 3, 6, 7, 8])
def test_gradients_accumulated_over_uneven_parts_are_those_of_the_whole_batch(micro, cores):
    whole, parts, given = tiny(), tiny(), batch(7)
    loss, _ = whole(given)
    loss.backward()
    assert float(accumulate(parts, given, micro, cores)["loss"]) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert distance(gradients(parts), gradients(whole)) < TOLERANCE


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("micro", [2, 3, 7])
@pytest.mark.parametrize("noise", ["dropout", "attention_dropout", "drop_path"])
def test_what_is_drawn_does_not_depend_on_how_a_batch_is_split(noise, micro, cores):
    whole, parts, plain, given = tiny(**{noise: 0.3}), tiny(**{noise: 0.3}), tiny(), batch(7)
    torch.manual_seed(1)
    accumulate(whole, given, 7)
    torch.manual_seed(2)
    accumulate(parts, given, micro, cores)
    assert distance(gradients(parts), gradients(whole)) < TOLERANCE
    accumulate(plain, given, 7)
    assert distance(gradients(plain), gradients(whole)) > 1e-4

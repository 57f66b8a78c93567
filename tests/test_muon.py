"""Muon against its equations in NumPy, against torch's, and against what orthogonal means."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.optim import muon
from vitrail.optim.muon import Muon, orthogonal


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def group(name, parameter, **more):
    return {"params": [parameter], "names": [name], **more}


def newton_schulz(x):
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def trained(start, optimizer, gradients):
    """The weight after a step for each of the gradients. optimizer: makes one of a parameter."""
    parameter = torch.nn.Parameter(start.clone())
    made = optimizer(parameter)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        made.step()
    return parameter.detach()


def ours(name, **more):
    return lambda parameter: Muon([group(name, parameter, **more)], lr=0.02)


@pytest.mark.parametrize("shape", [(6, 6), (4, 10), (10, 4)])
def test_steps_are_those_of_the_equations(shape):
    weight, average = numbers(*shape).numpy(), np.zeros(shape)
    gradients = [numbers(*shape, seed=10 + step) for step in range(4)]
    for gradient in map(torch.Tensor.numpy, gradients):
        average = 0.95 * average + 0.05 * gradient
        update = 0.05 * gradient + 0.95 * average
        made = newton_schulz(update.T).T if shape[0] > shape[1] else newton_schulz(update)
        weight = weight * (1 - 0.02 * 0.3) - 0.02 * 0.2 * math.sqrt(max(shape)) * made
    found = trained(numbers(*shape), ours("blocks.0.mlp.fc1.weight", weight_decay=0.3), gradients)
    np.testing.assert_allclose(found.numpy(), weight, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(32, 32), (24, 64), (64, 24)])
def test_steps_are_torchs_but_for_its_bfloat16(shape):
    def theirs(parameter):
        return torch.optim.Muon([parameter], lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")

    start, *gradients = (numbers(*shape, seed=seed, dtype=torch.float32) for seed in range(4))
    found, expected = (trained(start, optimizer, gradients) for optimizer in (ours("fc1.weight"), theirs))
    assert (found - expected).norm() < 0.02 * (expected - start).norm()


@pytest.mark.parametrize(("name", "count"), [("attn.qkv.weight", 3), ("attn_pool.kv.weight", 2)])
def test_fused_layers_are_as_many_matrices(name, count):
    tensors = [numbers(8 * count, 8, seed=seed) for seed in range(5)]
    fused = trained(tensors[0], ours(name), tensors[1:])
    for number, piece in enumerate(fused.chunk(count)):
        start, *gradients = (tensor.chunk(count)[number] for tensor in tensors)
        torch.testing.assert_close(piece, trained(start, ours("proj.weight"), gradients), rtol=0, atol=1e-14)


@pytest.mark.parametrize("together", [1, 50])
def test_matrices_that_are_stacked_step_as_each_alone(monkeypatch, together):
    def stepped():
        parameters = [torch.nn.Parameter(numbers(4, 6, seed=seed)) for seed in range(5)]
        optimizer = Muon([group(f"{i}.proj.weight", p, lr=0.01 * (i + 1)) for i, p in enumerate(parameters)], lr=1.0)
        for seed, parameter in enumerate(parameters):
            parameter.grad = numbers(4, 6, seed=50 + seed)
        optimizer.step()
        return torch.stack([p.detach() for p in parameters])

    expected = stepped()
    monkeypatch.setattr(muon, "TOGETHER", together)
    torch.testing.assert_close(stepped(), expected, rtol=0, atol=1e-14)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(2, 12), more=st.integers(0, 12), seed=st.integers(0, 10**6))
def test_singular_values_come_near_one(rows, more, seed):
    matrix = numbers(1, rows, rows + more, seed=seed)
    given_values = torch.linalg.svdvals(matrix[0] / matrix[0].norm())
    values = torch.linalg.svdvals(orthogonal(matrix)[0])[given_values > 0.01]
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_what_has_no_gradient_or_one_of_zeros_stays():
    weight = torch.nn.Parameter(numbers(4, 6))
    optimizer = Muon([group("proj.weight", weight, weight_decay=0.5)], lr=1.0)
    assert optimizer.step(lambda: 2.5) == 2.5
    assert torch.equal(weight.detach(), numbers(4, 6))
    assert not optimizer.state
    assert torch.equal(trained(numbers(4, 6), ours("proj.weight"), [torch.zeros(4, 6).double()]), numbers(4, 6))


def test_what_is_no_matrix_is_refused_by_name():
    with pytest.raises(ValueError, match=r"muon trains matrices, and blocks.0.norm is \(3,\): use adamw for it"):
        Muon([group("blocks.0.norm", torch.nn.Parameter(torch.ones(3)))], lr=0.1)

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


def steps(parameter, name, count=4, **how):
    """Trains on gradients that follow from the step alone."""
    optimizer = Muon([group(name, parameter, **how)], lr=0.02)
    for step in range(count):
        parameter.grad = numbers(*parameter.shape, seed=10 + step, dtype=parameter.dtype)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(6, 6), (4, 10), (10, 4)])
def test_steps_are_those_of_the_equations(shape):
    weight, average = numbers(*shape).numpy(), np.zeros(shape)
    for step in range(4):
        gradient = numbers(*shape, seed=10 + step).numpy()
        average = 0.95 * average + 0.05 * gradient
        update = 0.05 * gradient + 0.95 * average
        made = newton_schulz(update.T).T if shape[0] > shape[1] else newton_schulz(update)
        weight = weight * (1 - 0.02 * 0.3) - 0.02 * 0.2 * math.sqrt(max(shape)) * made
    found = steps(torch.nn.Parameter(numbers(*shape)), "blocks.0.mlp.fc1.weight", weight_decay=0.3)
    np.testing.assert_allclose(found.numpy(), weight, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(32, 32), (24, 64), (64, 24)])
def test_steps_are_torchs_but_for_its_bfloat16(shape):
    ours = steps(torch.nn.Parameter(numbers(*shape, dtype=torch.float32)), "fc1.weight", count=3)
    theirs = torch.nn.Parameter(numbers(*shape, dtype=torch.float32))
    start = theirs.detach().clone()
    other = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        theirs.grad = numbers(*shape, seed=10 + step, dtype=torch.float32)
        other.step()
    assert (ours - theirs.detach()).norm() < 0.02 * (theirs.detach() - start).norm()


@pytest.mark.parametrize(("name", "count"), [("attn.qkv.weight", 3), ("attn_pool.kv.weight", 2)])
def test_fused_layers_are_as_many_matrices(name, count):
    fused = steps(torch.nn.Parameter(numbers(8 * count, 8)), name)
    for number, piece in enumerate(fused.chunk(count)):
        alone = torch.nn.Parameter(numbers(8 * count, 8).chunk(count)[number].clone())
        optimizer = Muon([group("proj.weight", alone)], lr=0.02)
        for step in range(4):
            alone.grad = numbers(8 * count, 8, seed=10 + step).chunk(count)[number].clone()
            optimizer.step()
        torch.testing.assert_close(piece, alone.detach(), rtol=0, atol=1e-14)


def test_matrices_that_are_stacked_step_as_each_alone(monkeypatch):
    def trained(together):
        monkeypatch.setattr(muon, "TOGETHER", together)
        parameters = [torch.nn.Parameter(numbers(4, 6, seed=seed)) for seed in range(5)]
        optimizer = Muon([group(f"{i}.proj.weight", p, lr=0.01 * (i + 1)) for i, p in enumerate(parameters)], lr=1.0)
        for seed, parameter in enumerate(parameters):
            parameter.grad = numbers(4, 6, seed=50 + seed)
        optimizer.step()
        return torch.stack([p.detach() for p in parameters])

    torch.testing.assert_close(trained(2**26), trained(1), rtol=0, atol=1e-14)
    torch.testing.assert_close(trained(2**26), trained(50), rtol=0, atol=1e-14)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(2, 12), more=st.integers(0, 12), seed=st.integers(0, 10**6))
def test_singular_values_come_near_one(rows, more, seed):
    matrix = numbers(1, rows, rows + more, seed=seed)
    given_values = torch.linalg.svdvals(matrix[0] / matrix[0].norm())
    values = torch.linalg.svdvals(orthogonal(matrix)[0])[given_values > 0.01]
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_gradient_of_zeros_moves_nothing():
    weight = torch.nn.Parameter(numbers(4, 6))
    weight.grad = torch.zeros(4, 6, dtype=torch.float64)
    Muon([group("proj.weight", weight)], lr=1.0).step()
    assert torch.equal(weight.detach(), numbers(4, 6))


def test_what_has_no_gradient_stays():
    weight = torch.nn.Parameter(numbers(4, 6))
    optimizer = Muon([group("proj.weight", weight, weight_decay=0.5)], lr=1.0)
    assert optimizer.step(lambda: 2.5) == 2.5
    assert torch.equal(weight.detach(), numbers(4, 6))
    assert not optimizer.state


def test_what_is_no_matrix_is_refused_by_name():
    with pytest.raises(ValueError, match=r"muon trains matrices, and blocks.0.norm is \(3,\): use adamw for it"):
        Muon([group("blocks.0.norm", torch.nn.Parameter(torch.ones(3)))], lr=0.1)

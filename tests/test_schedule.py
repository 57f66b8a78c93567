"""The learning rate against big_vision's formulas, torch's schedulers and its own properties; durations."""

import doctest
import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vitrail.optim.schedule
from vitrail.optim.schedule import Schedule, multiplier, steps_of


def curve(schedule, total, **sizes):
    return [multiplier(schedule, step, total, **sizes) for step in range(total + 1)]


def big_vision(kind, step, total, warmup, cooldown, timescale):
    """create_learning_rate_schedule, in its own order of operations (base 1, shift 0)."""
    progress = min(max((step - warmup) / (total - warmup), 0), 1)
    lr = 1.0
    if kind == "linear":
        lr = lr * (1 - progress)
    if kind == "cosine":
        lr = lr * 0.5 * (1 + math.cos(math.pi * progress))
    if kind == "rsqrt":
        lr = lr / math.sqrt(1 + (step - warmup) / timescale) if step >= warmup else lr
    lr = lr * min(1, step / warmup) if warmup else lr
    return lr * min(1, (total - step) / cooldown) if cooldown else lr


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "rsqrt"])
@pytest.mark.parametrize(("warmup", "cooldown"), [(0, 0), (10, 0), (0, 25), (10, 25)])
def test_equals_big_vision(kind, warmup, cooldown):
    schedule = Schedule(kind, warmup=f"{warmup} steps", cooldown=f"{cooldown} steps", timescale="20 steps")
    expected = [big_vision(kind, step, 100, warmup, cooldown, 20) for step in range(101)]
    assert curve(schedule, 100) == pytest.approx(expected, abs=1e-15)


def test_closed_forms():
    linear = Schedule("linear", warmup="10%")
    assert [multiplier(linear, t, 1000) for t in (0, 1, 50, 100, 550, 999, 1000)] == pytest.approx(
        [0, 0.01, 0.5, 1, 0.5, 1 / 900, 0]
    )
    cosine = Schedule("cosine", end=0.1)
    assert [multiplier(cosine, t, 300) for t in (0, 100, 150, 200, 300)] == pytest.approx([1, 0.775, 0.55, 0.325, 0.1])
    rsqrt = Schedule("rsqrt", warmup="100 steps", cooldown="50 steps", timescale="300 steps", end=0.2)
    # Half after three time scales; then half-way between the curve and the end value.
    assert multiplier(rsqrt, 1000, 1050) == pytest.approx(0.5)
    assert multiplier(rsqrt, 1025, 1050) == pytest.approx(0.5 / math.sqrt(1 + 925 / 300) + 0.1)
    stable = Schedule("constant", cooldown="20%")
    assert [multiplier(stable, t, 10) for t in range(11)] == pytest.approx([1] * 9 + [0.5, 0])


def torch_curve(scheduler, steps, **settings):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, values = scheduler(optimizer, **settings), []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


def test_equals_torch_schedulers():
    cosine = torch_curve(torch.optim.lr_scheduler.CosineAnnealingLR, 50, T_max=50, eta_min=0.2)
    assert curve(Schedule("cosine", end=0.2), 50)[:50] == pytest.approx(cosine)
    assert curve(Schedule("cosine", warmup="7 steps", end=0.2), 57)[7:57] == pytest.approx(cosine)
    linear = torch_curve(torch.optim.lr_scheduler.LinearLR, 50, start_factor=1.0, end_factor=0.2, total_iters=50)
    assert curve(Schedule("linear", end=0.2), 50)[:50] == pytest.approx(linear)
    # LinearLR cannot start from 0: it starts where our second step is.
    rise = torch_curve(torch.optim.lr_scheduler.LinearLR, 10, start_factor=1 / 8, end_factor=1.0, total_iters=7)
    assert curve(Schedule("constant", warmup="8 steps"), 20)[1:11] == pytest.approx(rise)


lengths = st.tuples(st.integers(0, 40), st.integers(1, 60), st.integers(0, 40))  # warm-up, between, cool-down


@given(lengths, st.sampled_from(["constant", "linear", "cosine", "rsqrt"]), st.floats(0, 1), st.integers(1, 99))
def test_rises_to_one_and_ends_at_the_end(lengths, kind, end, timescale):
    warmup, between, cooldown = lengths
    total = warmup + between + cooldown
    end = end if cooldown or kind in ("linear", "cosine") else 0.0
    schedule = Schedule(kind, f"{warmup} steps", f"{cooldown} steps", f"{timescale} steps", end)
    values = curve(schedule, total)
    assert all(0 <= value <= 1 for value in values)
    assert values[: warmup + 1] == pytest.approx([t / warmup for t in range(warmup)] + [1])
    if cooldown or kind in ("linear", "cosine"):
        assert values[-1] == pytest.approx(end)
    if end == 0:
        assert all(a >= b for a, b in zip(values[warmup:-1], values[warmup + 1 :], strict=True))


@given(lengths, st.sampled_from(["constant", "linear", "cosine", "rsqrt"]), st.integers(2, 9), st.data())
def test_a_longer_run_is_the_same_curve_stretched(lengths, kind, times, data):
    warmup, between, cooldown = lengths
    total = warmup + between + cooldown
    step = data.draw(st.integers(0, total))
    one, many = (
        multiplier(
            Schedule(kind, f"{n * warmup} steps", f"{n * cooldown} steps", f"{n * 30} steps"), n * step, n * total
        )
        for n in (1, times)
    )
    assert one == pytest.approx(many)


def test_units_of_a_schedule_agree():
    sizes = {"batch": 50, "examples": 1000}
    in_steps = curve(Schedule("rsqrt", "20 steps", "40 steps", "10 steps"), 200)
    assert curve(Schedule("rsqrt", "1 epoch", "2 epochs", "500 examples"), 200, **sizes) == in_steps
    assert curve(Schedule("rsqrt", "10%", "20%", "5%"), 200) == in_steps


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("500 steps", 500), ("1step", 1), ("0 epochs", 0), ("0%", 0), ("2 Epochs", 312), ("0.5 epochs", 78),
        ("1_000_000 examples", 15625), ("1e6 examples", 15625), ("1 example", 1), ("5%", 50), ("2.55 %", 26),
        ("0.01%", 1), ("100%", 1000), ("90 epochs", 14062),
    ],
)  # fmt: skip
def test_durations(duration, steps):
    assert steps_of(duration, total=1000, batch=64, examples=10_000) == steps


def test_paper_lengths():
    # ImageNet-21k and its 10k warm-up steps of 4096; Table 4's 500 steps need no sizes.
    assert steps_of("90 epochs", batch=4096, examples=14_197_122) == 311_948
    assert steps_of("40_960_000 examples", batch=4096) == 10_000
    assert steps_of("500 steps") == 500


@pytest.mark.parametrize(
    ("duration", "sentence"),
    [
        ("500", "'500' has no unit: did you mean '500 steps'"),
        ("2 epocs", "unknown unit 'epocs': did you mean '2 epochs'"),
        ("9 samples", "did you mean '9 examples'"),
        ("-5 steps", "not a number and a unit"),
        ("many steps", "not a number and a unit"),
        ("1.5 steps", "not a whole number of steps"),
        ("101%", "more than the whole run"),
        ("2 epochs", "needs the number of examples in the data set, which is None"),
        ("5%", "needs the run's total steps, which is None"),
    ],
)
def test_duration_errors_are_sentences(duration, sentence):
    with pytest.raises(ValueError, match=sentence):
        steps_of(duration, batch=32)


def test_schedule_errors_are_sentences(unchecked):
    with pytest.raises(ValueError, match=r"warm-up '600 steps' \(600 steps\).* longer than the run of 500 steps"):
        multiplier(Schedule(warmup="600 steps"), 0, 500)
    with pytest.raises(ValueError, match=r"cool-down '50%' \(50 steps\) are longer than the run of 100"):
        multiplier(Schedule(warmup="60%", cooldown="50%"), 0, 100)
    with pytest.raises(ValueError, match="step 101 is outside the run: steps go from 0 to 100"):
        multiplier(Schedule(), 101, 100)
    with pytest.raises(ValueError, match="kind 'cosin' is unknown: choose one of constant, linear, cosine, rsqrt"):
        Schedule("cosin")
    with pytest.raises(ValueError, match=r"end 1.5 must lie in \[0, 1\]"):
        Schedule(end=1.5)
    with pytest.raises(ValueError, match=r"constant schedule reaches end = 0.1 by a cool-down only"):
        Schedule("constant", end=0.1)
    with pytest.raises(ValueError, match="unknown unit 'stps'"):
        Schedule(warmup="5 stps")
    with pytest.raises(ValueError, match="timescale '0 steps' must be longer than 0"):
        Schedule("rsqrt", timescale="0 steps")


@given(st.integers(1, 5), st.integers(0, 50), st.integers(0, 50))
def test_percentages_fit_the_shortest_runs(total, warmup, cooldown):
    assert 0 <= multiplier(Schedule("constant", f"{warmup}%", f"{cooldown}%"), total - 1, total) <= 1


def test_survives_json():
    schedule = Schedule("rsqrt", "5 epochs", "10%", "100_000 examples", 0.01)
    assert Schedule(**json.loads(json.dumps(asdict(schedule)))) == schedule


def test_the_examples_on_the_first_screen_hold():
    assert doctest.testmod(vitrail.optim.schedule) == doctest.TestResults(failed=0, attempted=3)

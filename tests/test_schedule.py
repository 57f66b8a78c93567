"""The learning rate against big_vision's formulas, torch's schedulers and its own properties; durations."""

import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vitrail.optim.schedule
from vitrail.optim.schedule import Schedule, multiplier, prolonged, steps_of


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


kinds = st.sampled_from(["constant", "linear", "cosine", "rsqrt"])
lengths = st.tuples(st.integers(0, 40), st.integers(1, 60), st.integers(0, 40))  # warm-up, between, cool-down


@given(lengths, kinds, st.integers(1, 99))
def test_equals_big_vision(lengths, kind, timescale):
    (warmup, _, cooldown), total = lengths, sum(lengths)
    schedule = Schedule(kind, f"{warmup} steps", f"{cooldown} steps", f"{timescale} steps")
    expected = [big_vision(kind, step, total, warmup, cooldown, timescale) for step in range(total + 1)]
    assert curve(schedule, total) == pytest.approx(expected, abs=1e-14)


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
    assert curve(Schedule("cosine", warmup="7 steps", end=0.2), 57)[7:57] == pytest.approx(cosine)
    linear = torch_curve(torch.optim.lr_scheduler.LinearLR, 50, start_factor=1.0, end_factor=0.2, total_iters=50)
    assert curve(Schedule("linear", end=0.2), 50)[:50] == pytest.approx(linear)
    # LinearLR cannot start from 0: it starts where our second step is.
    rise = torch_curve(torch.optim.lr_scheduler.LinearLR, 10, start_factor=1 / 8, end_factor=1.0, total_iters=7)
    assert curve(Schedule("constant", warmup="8 steps"), 20)[1:11] == pytest.approx(rise)


@given(lengths, kinds, st.floats(0, 1), st.integers(1, 99))
def test_rises_to_one_and_ends_at_the_end(lengths, kind, end, timescale):
    (warmup, _, cooldown), total = lengths, sum(lengths)
    leads = cooldown or kind in ("linear", "cosine")
    end = end if leads else 0.0
    values = curve(Schedule(kind, f"{warmup} steps", f"{cooldown} steps", f"{timescale} steps", end), total)
    assert all(0 <= value <= 1 for value in values)
    assert values[: warmup + 1] == pytest.approx([t / warmup for t in range(warmup)] + [1])
    if leads:
        assert values[-1] == pytest.approx(end)
    if end == 0:
        assert all(a >= b for a, b in zip(values[warmup:-1], values[warmup + 1 :], strict=True))


@given(st.integers(1, 5), kinds, st.integers(0, 100), st.sampled_from(["%", " steps"]))
def test_the_shortest_runs_have_a_rate(total, kind, warmup, unit):
    warmup = min(warmup, total) if unit == " steps" else warmup
    values = curve(Schedule(kind, f"{warmup}{unit}"), total)
    assert max(values[:-1]) > 0
    if unit == "%" and warmup * total < 50:
        assert values[0] == 1


@given(lengths, kinds, st.floats(0, 1), st.integers(-20, 200))
def test_a_run_with_another_end_goes_there_without_a_jump(lengths, kind, part, more):
    (warmup, _, cooldown), before = lengths, sum(lengths)
    step, total = round(part * before), before + more
    schedule = Schedule(kind, f"{warmup} steps", f"{cooldown} steps", "50 steps")
    if total <= step:
        with pytest.raises(ValueError, match=f"{total:,} steps are no more than the {step:,} that are done"):
            prolonged(schedule, step, before, total)
    elif warmup + cooldown <= total:
        longer = prolonged(schedule, step, before, total)
        values, whole = curve(longer, total)[step:], curve(schedule, total)[step:]
        rise = max(1, (total - step) // 10)
        assert max(values[:-1]) > 0
        assert values[rise - 1 :] == pytest.approx(whole[rise - 1 :])
        first, last = multiplier(schedule, step, before), whole[rise - 1]
        assert all(min(first, *whole) - 1e-9 <= value <= max(first, *whole) + 1e-9 for value in values)
        assert abs(values[0] - first) <= (1 + abs(last - first)) / rise
        again = prolonged(longer, step, total, total + 50)
        assert (again.level, again.warmup) == (multiplier(longer, step, total), f"{warmup} steps")


@given(st.integers(1, 5), st.integers(0, 50), st.integers(0, 50))
def test_percentages_fit_the_shortest_runs(total, warmup, cooldown):
    assert 0 <= multiplier(Schedule("constant", f"{warmup}%", f"{cooldown}%"), total - 1, total) <= 1


def test_units_of_a_schedule_agree():
    sizes = {"batch": 50, "examples": 1000}
    in_steps = curve(Schedule("rsqrt", "20 steps", "40 steps", "10 steps"), 200)
    assert curve(Schedule("rsqrt", "1 epoch", "2 epochs", "500 examples"), 200, **sizes) == in_steps
    assert curve(Schedule("rsqrt", "10%", "20%", "5%"), 200) == in_steps


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("500 steps", 500), ("1step", 1), ("0 epochs", 0), ("2 Epochs", 312), ("0.5 epochs", 78),
        ("1_000_000 examples", 15625), ("1e6 examples", 15625), ("1 example", 1), ("2.55 %", 26), ("0.01%", 1),
    ],
)  # fmt: skip
def test_durations(duration, steps):
    assert steps_of(duration, total=1000, batch=64, examples=10_000) == steps


def test_imagenet_21k_is_as_many_steps_as_in_the_paper():
    assert steps_of("90 epochs", batch=4096, examples=14_197_122) == 311_948
    assert steps_of("40_960_000 examples", batch=4096) == 10_000


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: steps_of("500"), "'500' has no unit: did you mean '500 steps'"),
        (lambda: steps_of("2 epocs"), "unknown unit 'epocs': did you mean '2 epochs'"),
        (lambda: steps_of("-5 steps"), "not a number and a unit"),
        (lambda: steps_of("1.5 steps"), "not a whole number of steps"),
        (lambda: steps_of("101%"), "more than the whole run"),
        (lambda: steps_of("2 epochs", batch=32), "needs the number of examples in the data set, which is None"),
        (lambda: steps_of("5%"), "needs the run's total steps, which is None"),
        (lambda: multiplier(Schedule(warmup="600 steps"), 0, 500), "warm-up '600 steps' .* longer than the run of 500"),
        (lambda: multiplier(Schedule(warmup="60%", cooldown="50%"), 0, 100), r"cool-down '50%' \(50 steps\) are"),
        (lambda: multiplier(Schedule(), 101, 100), "step 101 is outside the run: steps go from 0 to 100"),
        (lambda: Schedule("cosin"), "kind 'cosin' is unknown: choose one of constant, linear, cosine, rsqrt"),
        (lambda: Schedule(end=1.5), r"end 1.5 must lie in \[0, 1\]"),
        (lambda: Schedule("constant", end=0.1), "constant schedule reaches end = 0.1 by a cool-down only"),
        (lambda: Schedule(warmup="5 stps"), "unknown unit 'stps'"),
        (lambda: Schedule("rsqrt", timescale="0 steps"), "timescale '0 steps' must be longer than 0"),
    ],
)
def test_errors_are_sentences(unchecked, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        wrong()


def test_the_examples_on_the_first_screen_hold():
    assert doctest.testmod(vitrail.optim.schedule) == doctest.TestResults(failed=0, attempted=3)

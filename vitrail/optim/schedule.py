"""The learning rate as a pure function of the step, and durations in steps, epochs, examples or percent.

No state and no torch: the step alone decides, so a resumed run continues exactly, and with gradient
accumulation a step is one update of the optimiser. The formulas and the rounding are those of Google's
big_vision (`create_learning_rate_schedule` and `steps` in its utils.py), with an end value added.

    >>> cosine = Schedule("cosine", warmup="10%")
    >>> [round(multiplier(cosine, step, 10), 2) for step in range(10)]
    [0.0, 1.0, 0.97, 0.88, 0.75, 0.59, 0.41, 0.25, 0.12, 0.03]
    >>> steps_of("2 epochs", batch=512, examples=50_000)
    195
"""

import difflib
import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Literal, TypeAlias, get_args

# A number and a unit. Text rather than a class, so that the command line and run.json read alike.
Duration: TypeAlias = str
Kind: TypeAlias = Literal["constant", "linear", "cosine", "rsqrt"]

UNITS = ("steps", "epochs", "examples", "%")


@dataclass(frozen=True)
class Schedule:
    """What multiplies the base learning rate; `multiplier` gives the formulas.

    Raises ValueError for an unknown kind, an unreadable duration, an end value outside [0, 1], and for
    an end value that nothing would lead to (constant and rsqrt reach theirs by a cool-down only).
    """

    kind: Kind = "linear"
    warmup: Duration = "0 steps"
    """Linear, from 0 up to 1; it ends before the last step, and a percentage that is less than half a step is none."""
    cooldown: Duration = "0 steps"
    """Linear, down to `end`, over the last steps of the run."""
    timescale: Duration = "10000 steps"
    """For rsqrt only: after three of these the multiplier has halved."""
    end: float = 0.0
    """The multiplier at the end of the run."""
    since: int = 0
    """The step at which the run was given another end (see `prolonged`); 0 where it was not."""
    level: float = 1.0
    """What the multiplier was there."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"schedule kind {self.kind!r} is unknown: choose one of {', '.join(get_args(Kind))}")
        if not 0 <= self.end <= 1:
            raise ValueError(f"schedule end {self.end} must lie in [0, 1]: it multiplies the base learning rate")
        if self.since < 0 or not 0 <= self.level <= 1:
            raise ValueError(f"schedule since {self.since} must be 0 or more, and level {self.level} lie in [0, 1]")
        cooldown, timescale = (_parse(text)[0] for text in (self.cooldown, self.timescale))
        _parse(self.warmup)
        if timescale == 0:
            raise ValueError(f"schedule timescale {self.timescale!r} must be longer than 0")
        if self.end and not cooldown and self.kind in ("constant", "rsqrt"):
            only = f"a {self.kind} schedule reaches end = {self.end} by a cool-down only"
            raise ValueError(f"{only}: give a cool-down, or leave the end at 0")


def multiplier(
    schedule: Schedule, step: int, total: int, *, batch: int | None = None, examples: int | None = None
) -> float:
    """The factor in [0, 1] for the update that takes the weights from `step` to `step + 1`.

    Steps count from 0 and the update of step t uses the value at its beginning, t in 0 .. total - 1.
    With W = warmup, C = cooldown, S = timescale in steps, T = total, u = max(t - W, 0), p = u / (T - W):

        decay     constant 1;  linear end + (1 - end)(1 - p);
                  cosine end + (1 - end)(1 + cos(pi p)) / 2;  rsqrt 1 / sqrt(1 + u / S)
        left      min(1, (T - t) / C), or 1 without a cool-down
        result    min(1, t / W) (left decay + (1 - left) end)

    So the first update of a warm-up has factor 0, step W has 1, and `end` belongs to step T: the last
    update stays one step short of it. This is big_vision's convention value for value when end = 0.
    T is accepted as a step too, for a log that closes the curve. W is at most T - 1, so that no run has factor 0 alone.
    Of a run that was given another end at step s, this is blended with the level there, over a tenth of T - s steps.

    `batch` (examples a step, over all processes) and `examples` (in an epoch) are needed only by
    durations in epochs and examples.

    Raises ValueError for a step outside the run, and for warm-up and cool-down longer than the run.
    """
    if not 0 <= step <= total:
        raise ValueError(f"step {step} is outside the run: steps go from 0 to {total}")
    warmup = _warmup(schedule, total, batch=batch, examples=examples)
    cooldown = steps_of(schedule.cooldown, total=total, batch=batch, examples=examples)
    _check_fit(schedule, warmup, cooldown, total)
    warmup = min(warmup, max(total - 1, 0))
    after = max(step - warmup, 0)
    if schedule.kind == "rsqrt":
        scale = steps_of(schedule.timescale, total=total, batch=batch, examples=examples)
        decay = 1 / math.sqrt(1 + after / scale)
    else:
        decay = _decay(schedule, after / max(total - warmup, 1))
    left = min(1.0, (total - step) / cooldown) if cooldown else 1.0
    rise = min(1.0, step / warmup) if warmup else 1.0
    factor = rise * (left * decay + (1 - left) * schedule.end)
    if not schedule.since:
        return factor
    blended = min(1.0, max(0, step - schedule.since + 1) / max(1, (total - schedule.since) // 10))
    return (1 - blended) * schedule.level + blended * factor


def prolonged(
    schedule: Schedule, step: int, before: int, total: int, *, batch: int | None = None, examples: int | None = None
) -> Schedule:
    """The schedule of a run that ends after `total` steps rather than the `before` that it had, once `step` are done.

    The factor goes from what it is to that of a run which had this end from its start, over a tenth of the steps that
    are left; a warm-up is as many steps as it was, so it is not repeated. ValueError where `total` steps are done.
    """
    sizes = {"batch": batch, "examples": examples}
    if total <= step:
        raise ValueError(f"{total:,} steps are no more than the {step:,} that are done")
    level = multiplier(schedule, step, before, **sizes)
    return replace(schedule, warmup=f"{_warmup(schedule, before, **sizes)} steps", since=step, level=level)


def steps_of(
    duration: Duration, *, total: int | None = None, batch: int | None = None, examples: int | None = None
) -> int:
    """How many steps a duration is: "500 steps", "2 epochs", "1_000_000 examples" or "5%" (of the run).

    `total` is the run's length in steps, `batch` the examples in a step over all processes, `examples` the
    length of the data set; only those that the unit needs must be given. Rounded to the nearest step (halves
    to even), but at least 1 unless the duration is 0.

    Raises ValueError for what cannot be read, and where the unit needs a number that is not given.
    """
    number, unit = _parse(duration)
    if unit == "steps":
        steps = number
    elif unit == "%":
        steps = number / 100 * _known(duration, "the run's total steps", total)
    else:
        steps = number / _known(duration, "the batch size", batch)
        if unit == "epochs":
            steps *= _known(duration, "the number of examples in the data set", examples)
    return max(1, round(steps)) if number else 0


def _warmup(schedule: Schedule, total: int, *, batch: int | None, examples: int | None) -> int:
    number, unit = _parse(schedule.warmup)
    return round(number / 100 * total) if unit == "%" else steps_of(schedule.warmup, batch=batch, examples=examples)


def _decay(schedule: Schedule, progress: float) -> float:
    """From 1 at progress 0 to the end value at progress 1."""
    if schedule.kind == "constant":
        return 1.0
    falling = 1 - progress if schedule.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return falling + (1 - falling) * schedule.end


def _check_fit(schedule: Schedule, warmup: int, cooldown: int, total: int) -> None:
    """Raises ValueError where the base learning rate would never be reached."""
    # One step of grace: two short percentages may each have been rounded up to a step.
    if max(warmup, cooldown, warmup + cooldown - 1) > total:
        raise ValueError(
            f"warm-up {schedule.warmup!r} ({warmup} steps) and cool-down {schedule.cooldown!r} ({cooldown} steps) "
            f"are longer than the run of {total} steps: shorten them, write them in percent ('5%'), or train longer"
        )


@cache
def _parse(duration: Duration) -> tuple[Fraction, str]:
    """The exact number and the unit, one of UNITS. Cached, for it is asked again at every step."""
    match = re.fullmatch(r"\s*(\d+(?:_\d+)*(?:\.\d+)?(?:e\d{1,2})?)\s*([a-z%]*)\s*", duration, re.I | re.A)
    if match is None:
        raise ValueError(f"duration {duration!r} is not a number and a unit, such as '500 steps', '2 epochs' or '5%'")
    number, unit = Fraction(match[1]), match[2].lower()
    unit = unit if unit in UNITS else f"{unit}s"
    if unit not in UNITS:
        near = difflib.get_close_matches(unit, UNITS, n=1, cutoff=0.0) if match[2] else ["steps"]
        raise ValueError(
            f"duration {duration!r} has {f'an unknown unit {match[2]!r}' if match[2] else 'no unit'}: "
            f"did you mean '{match[1]} {near[0]}'? The units are {', '.join(UNITS)}"
        )
    if unit == "%" and number > 100:
        raise ValueError(f"duration {duration!r} is more than the whole run: a percentage lies between 0% and 100%")
    if unit == "steps" and number.denominator != 1:
        raise ValueError(f"duration {duration!r} is not a whole number of steps: write a whole number, or use epochs")
    return number, unit


def _known(duration: Duration, what: str, value: int | None) -> int:
    if value is None or value < 1:
        raise ValueError(f"duration {duration!r} needs {what}, which is {value}: pass it, or write steps instead")
    return value

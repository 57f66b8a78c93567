"""Rounds in which every contestant has a turn, and what follows from them: speeds with quartiles, and ratios.

    record = new("S/16@224", first="timm", batch=8)
    take_turns(record, {"timm": turn, "vitrail": turn}, rounds=5)        # turn() -> {"seconds": 0.21}, of one image
    report([record], {"img/s": images_per_second})

A shared machine is never quiet for long. So the contestants take turns, in an order shuffled each round, and a ratio is
taken within each round, where both met the same noise. A round in which other programs took more than DISTURBED of the
machine is kept in the record but measured again, as long as patience lasts; it counts only where fewer than LEAST quiet
ones remain. A ratio is printed only where the quartiles of at least LEAST rounds lie within WIDTH of their median.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import busy_seconds, table
from benchmarks.pool import WorkerError

Record = dict[str, Any]
Turn = Callable[[], dict[str, Any]]
Column = Callable[[Record, str], str]

DISTURBED = 0.1  # of the machine
SHORT = 0.05  # seconds, of which the system counts hundredths: too few to tell what others took
LEAST = 3  # rounds
WIDTH = 0.1  # of the median
STEPS = 5  # of a training run, after its warm-up


def new(case: str, first: str, **more: Any) -> Record:
    """A record without rounds. first: the contestant whose time is divided by the others'."""
    return {"case": case, "first": first, **more, "foreign": [], "libraries": {}, "errors": {}}


def take_turns(
    record: Record,
    turns: Mapping[str, Turn],
    rounds: int,
    until: float = math.inf,
    before: Callable[[], None] | None = None,
) -> None:
    """Adds to record["libraries"][name] a list for each value that turns[name]() returns, with one entry per round.

    A contestant that fails has no more turns, and record["errors"] says why. until: when the last round should end,
    by time.perf_counter(); there is always a first. before: is called before each round.
    """
    waiting, order = dict(turns), random.Random(f"{record['case']} {len(record['foreign'])}")
    quiet = number = 0
    longest = 0.0
    for name in turns:
        record["libraries"].setdefault(name, {})
    while waiting and quiet < rounds and number < 2 * rounds and (not number or _now() + longest <= until):
        began, found, foreign = _now(), {}, [0.0]
        try:
            if before:
                before()
        except WorkerError as error:
            fail(record, "what comes before a round", error)
            break
        for name in order.sample(sorted(waiting), len(waiting)):
            try:
                found[name], others = _watched(waiting[name])
                foreign.append(others)
            except (WorkerError, ValueError) as error:
                fail(record, name, error)
                del waiting[name]
        for name, answer in found.items():  # a round counts as a whole
            for key, value in answer.items():
                record["libraries"][name].setdefault(key, []).append(value)
        record["foreign"].append(round(max(foreign), 3))
        number, quiet, longest = number + 1, quiet + (max(foreign) <= DISTURBED), max(longest, _now() - began)
        busy = f"; others took {max(foreign):.0%} of the machine" if max(foreign) > DISTURBED else ""
        say(f"{record['case']}: round {number} done in {_now() - began:.0f} s, {quiet} of {rounds} quiet{busy}")


def warm_up(turns: Mapping[str, Turn]) -> None:
    """Takes one turn each without keeping it: it warms the file cache and writes the byte code."""
    for turn in turns.values():
        with suppress(WorkerError):  # the first round reports it
            turn()


def fail(record: Record, name: str, error: Exception) -> None:
    """Notes why a contestant has no more turns; what it has measured stays."""
    record["errors"][name] = str(error)


def _watched(turn: Turn) -> tuple[dict[str, Any], float]:
    """What a turn returns, and the fraction of the machine that other programs took meanwhile."""
    start, busy, own = _now(), busy_seconds(), _children()
    answer = turn()
    wall, busy_after = _now() - start, busy_seconds()
    if busy is None or busy_after is None or wall < SHORT:
        return answer, 0.0
    others = busy_after - busy - answer.get("processor_seconds", _children() - own)
    return answer, max(0.0, others) / (wall * (os.cpu_count() or 1))


def _children() -> float:
    """Processor seconds of all processes that this one started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _now() -> float:
    return time.perf_counter()


def left(until: float) -> float:
    """Seconds until then, at least one."""
    return max(1.0, until - _now())


def deadline(until: float, waiting: int) -> float:
    """When the next of `waiting` measurements should end, if all have the same time."""
    return until if math.isinf(until) else _now() + (until - _now()) / waiting


def say(text: str) -> None:
    """Prints progress on standard error."""
    print(f"benchmarks: {text}", file=sys.stderr, flush=True)


def steady(steps: Sequence[float], batch: int, warm: int) -> float:
    """Seconds per image of a training run, from those of each of its steps, without the first `warm`.

    ValueError for fewer than STEPS after them, or a step that took no time.
    """
    timed = steps[warm:]
    if len(timed) < STEPS:
        raise ValueError(f"there are {len(timed)} steps after the first {warm}, but {STEPS} are needed")
    if not min(timed) > 0:
        raise ValueError(f"a step took {min(timed):g} s, which no step can")
    return sum(timed) / (len(timed) * batch)


def counted(record: Record, values: Sequence[float]) -> list[float]:
    """The values of the rounds that count: the quiet ones, or all of them if fewer than LEAST were quiet."""
    quiet = [number for number, foreign in enumerate(record["foreign"]) if foreign <= DISTURBED]
    chosen = quiet if len(quiet) >= LEAST else range(len(record["foreign"]))
    return [values[number] for number in chosen if number < len(values)]


def values(record: Record, name: str, key: str = "seconds") -> list[float]:
    """A contestant's values in the rounds that count."""
    return counted(record, record["libraries"].get(name, {}).get(key, []))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile; of fewer than four values, the extremes."""
    if len(values) < 4:
        return min(values), max(values)
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def spread(values: Sequence[float], form: str = ".4g") -> str:
    """Median and quartiles: "5.3 (5.1 to 5.6)"."""
    if not values:
        return "-"
    low, high = quartiles(values)
    return f"{statistics.median(values):{form}} ({low:{form}} to {high:{form}})"


@dataclass(frozen=True)
class Ratio:
    """The ratio of two series in each round, NaN where a duration was not above 0. As text: median and quartiles, or
    "not measured" and the spread."""

    values: tuple[float, ...]

    @property
    def measured(self) -> bool:
        """Whether the rounds agree well enough."""
        if len(self.values) < LEAST or not all(map(math.isfinite, self.values)):
            return False
        middle = statistics.median(self.values)
        return all(abs(value - middle) <= WIDTH * middle for value in quartiles(self.values))

    def __str__(self) -> str:
        if not self.values:
            return "-"
        if self.measured:
            return spread(self.values, ".3f")
        if not all(map(math.isfinite, self.values)):
            return "not measured (a duration was not above 0)"
        few = f"{len(self.values)} of {LEAST} rounds, " if len(self.values) < LEAST else ""
        low, high = quartiles(self.values)
        return f"not measured ({few}spread {low:.3f} to {high:.3f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """above / below for each round that both have: a contestant that fails has no later ones."""
    pairs = zip(above, below, strict=False)
    return Ratio(tuple(a / b if min(a, b) > 0 and max(a, b) < math.inf else math.nan for a, b in pairs))


def beside(record: Record, name: str) -> str:
    """The first contestant's time divided by this one's."""
    same = name == record["first"]
    return "" if same else str(ratio(values(record, record["first"]), values(record, name)))


def images_per_second(record: Record, name: str) -> str:
    """Images per second, where "seconds" are per image."""
    return spread([1 / seconds for seconds in values(record, name)])


def seconds(record: Record, name: str) -> str:
    """Seconds, with quartiles."""
    return spread(values(record, name))


def of_limit(record: Record, name: str) -> str:
    """FLOP/s ("flops" of an image over "seconds") as a fraction of the rate of matrix products in the same round."""
    flops = record["libraries"][name]["flops"]
    limit = [flops / (rate * 1e9) for rate in counted(record, record["matrix_gflops"])]
    return str(ratio(limit, values(record, name)))


def report(records: Sequence[Record], columns: Mapping[str, Column]) -> str:
    """A table with a line for each case and contestant."""
    shown = [(record, name) for record in records for name in record["libraries"] if values(record, name)]
    if not shown:
        return "Nothing was measured."
    first = dict.fromkeys(record["first"] for record in records)
    headers = ["case", "library", *columns, f"time of {' or '.join(first)} / its own", "quiet rounds"]
    rows = []
    for record, name in shown:
        undisturbed = sum(foreign <= DISTURBED for foreign in record["foreign"])
        cells = [column(record, name) for column in columns.values()]
        rows.append([record["case"], name, *cells, beside(record, name), f"{undisturbed} of {len(record['foreign'])}"])
    return table(headers, rows)

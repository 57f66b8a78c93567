"""What a run of the benchmark consists of, how long it should take, and how far it is.

    from benchmarks.plan import Options, Setting, settings

A setting is one row of the result: a case, a pass and a mode, with a batch that two cores finish in seconds.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.machine import usable_cores
from benchmarks.peers import BUILDERS, Case

PASSES = ("forward", "train")
MODES = ("eager", "compiled")
CASES = ("Ti/4@32", "Ti/16@224", "S/16@224", "B/16@224", "B/16@384")

# Seconds of a stretch of work that costs no steps: a process with torch and one library in it, and a compilation
# without and with a warm cache. Guesses for the estimate only.
START_SECONDS = 6.0
COMPILE_SECONDS = 22.0
CACHED_SECONDS = 8.0
SHARE_OF_LIMIT = 0.7


@dataclass(frozen=True)
class Options:
    """Everything that decides a run; the first library is held against the best of the others. A library written
    "timm:compiled" has a mode of its own."""

    libraries: tuple[str, ...] = tuple(BUILDERS)
    cases: tuple[str, ...] = CASES
    passes: tuple[str, ...] = PASSES
    modes: tuple[str, ...] = MODES
    rounds: int = 5
    repeats: int = 1
    burst: float = 1.0
    forward_batch: int | None = None
    train_batch: int | None = None
    device: str = "cpu"
    threads: int = usable_cores()
    keep_freed: bool = True
    speed: bool = True
    memory: bool = True
    timeout: float = 600.0

    def __post_init__(self) -> None:
        for name, given, known in (
            ("libraries", tuple(label.partition(":")[0] for label in self.libraries), tuple(BUILDERS)),
            ("passes", self.passes, PASSES),
            ("modes", self.modes, MODES),
        ):
            unknown = [value for value in given if value not in known]
            if unknown or not given:
                raise ValueError(f"{name}: {', '.join(unknown) or 'none given'}; known are {', '.join(known)}")
        for case in self.cases:
            Case.parse(case)
        if min(self.rounds, self.repeats) < 1:
            raise ValueError(f"rounds ({self.rounds}) and repeats ({self.repeats}) must be 1 or more")


@dataclass(frozen=True)
class Setting:
    """One row: the same for every library."""

    case: str
    pass_name: str
    mode: str
    batch: int

    def __str__(self) -> str:
        return f"{self.case} {self.pass_name} {self.mode}"

    def request(self, library: str, options: Options) -> dict[str, Any]:
        """What a worker needs to build it."""
        name, _, mode = library.partition(":")
        named = {"case": self.case, "pass": self.pass_name, "mode": mode or self.mode, "batch": self.batch}
        return named | {"library": name, "device": options.device, "threads": options.threads}

    def record(self) -> dict[str, Any]:
        """The same in JSON's words."""
        fields = asdict(self)
        return {"case": fields.pop("case"), "pass": fields.pop("pass_name"), **fields}

    @property
    def gflop(self) -> float:
        """Of one step of the batch; the backward pass counts twice the forward pass."""
        return Case.parse(self.case).gflop * self.batch * (3 if self.pass_name == "train" else 1)


def batch_of(case: Case, pass_name: str, options: Options) -> int:
    """A batch large enough for the rate of a larger one, and small enough for several rounds of four libraries."""
    chosen = options.train_batch if pass_name == "train" else options.forward_batch
    if chosen:
        return chosen
    if options.device == "cuda":
        return 64 if case.resolution > 224 or pass_name == "train" else 256
    if case.gflop < 1:
        return 128  # as such models are trained; fewer would time the calls, not the products
    full = 16 if case.gflop < 20 else 8 if case.gflop < 60 else 4
    return full // 2 if pass_name == "train" else full


def settings(options: Options) -> list[Setting]:
    """All rows, in the order of the result."""
    rows = []
    for text in options.cases:
        for pass_name in options.passes:
            batch = batch_of(Case.parse(text), pass_name, options)
            rows += [Setting(str(Case.parse(text)), pass_name, mode, batch) for mode in options.modes]
    return rows


def memory_settings(options: Options) -> list[Setting]:
    """The eager rows: what a compiler keeps in memory is not the library's doing."""
    return settings(replace(options, modes=("eager",)))


def expected_seconds(setting: Setting, options: Options, repeat: int, gflops: float) -> float:
    """How long one setting of one repeat should take, with all libraries, at this matrix-product rate."""
    step = setting.gflop / (SHARE_OF_LIMIT * gflops)
    steps_per_round = max(step, options.burst)
    start = START_SECONDS
    if setting.mode == "compiled":
        start += CACHED_SECONDS if repeat else COMPILE_SECONDS
    return len(options.libraries) * (start + 3 * step + options.rounds * steps_per_round)


def expected_memory_seconds(setting: Setting, options: Options, gflops: float) -> float:
    """The same for the measurement of memory."""
    return len(options.libraries) * (START_SECONDS + 4 * setting.gflop / (SHARE_OF_LIMIT * gflops))


class Progress:
    """Lines on standard error: what is being done, how far the run is, how long it still takes."""

    def __init__(self, expected: float) -> None:
        self.expected = expected
        self.finished = 0.0
        self.start = time.perf_counter()

    def say(self, text: str) -> None:
        """One line. What is left is the estimate, corrected by how the finished part compared with its own."""
        gone = time.perf_counter() - self.start
        pace = gone / self.finished if self.finished > 0.05 * self.expected else 1.0
        left = max(0.0, (self.expected - self.finished) * pace)
        share = min(1.0, self.finished / self.expected) if self.expected else 1.0
        print(f"[{share:4.0%}, {minutes(gone)} gone, {minutes(left)} left] {text}", file=sys.stderr, flush=True)

    def advance(self, seconds: float) -> None:
        """This much of the estimate is done."""
        self.finished += seconds


def minutes(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

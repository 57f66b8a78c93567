"""Progressive resizing: the images of the first steps are smaller, so that there are fewer tokens and more steps.

    growth = Growth(start=0.57, until="60%")
    size_at(step, growth, total, (28, 28), (4, 4))      # (16, 16), (28, 28) from 60 % of the steps on

A Transformer reads any number of patches, its positions being resampled, so nothing but the images changes. Howard's
fast.ai had it for DAWNBench (2018), EfficientNetV2 as "progressive learning" (Tan & Le, arXiv 2104.00298).
"""

from dataclasses import dataclass

from vitrail.optim.schedule import Duration, steps_of


@dataclass(frozen=True)
class Growth:
    """How training images grow to the model's size. ValueError for a share outside (0, 1], and for no stage.

    Evaluation is always at the model's size, of which the model knows little before its images have grown.
    """

    start: float = 1.0
    """The first images' sides, as a share of the model's; 1 is no growth. Patches stay whole."""
    until: Duration = "50%"
    """When images have the model's size."""
    stages: int = 1
    """Sizes before that, evenly spaced, each for the same number of steps."""

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1:
            raise ValueError(f"start is {self.start}; it must be above 0 and at most 1, the model's own size.")
        if self.stages < 1:
            raise ValueError(f"stages is {self.stages}; it must be 1 or more.")


def size_at(
    step: int,
    growth: Growth,
    total: int,
    full: tuple[int, int],
    stride: tuple[int, int],
    *,
    batch: int | None = None,
    examples: int | None = None,
) -> tuple[int, int]:
    """(height, width) of the images of a step, from 0, of `total`: whole patches of `stride` pixels, or `full`.

    batch, examples: for durations in epochs and examples (schedule.py).
    """
    until = steps_of(growth.until, total=total, batch=batch, examples=examples)
    if growth.start == 1 or step >= until:
        return full
    share = growth.start + (1 - growth.start) * (step * growth.stages // until) / growth.stages
    height, width = (
        min(side, max(1, round(side * share / patch)) * patch) for side, patch in zip(full, stride, strict=True)
    )
    return height, width

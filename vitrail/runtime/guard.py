"""Whether the numbers of the steps are good: finite, and such that something is learned.

guard = Guard(task.alarm, folder, source, batches.indices, newest)
values = guard(steps)           # the last one's numbers; ValueError where any are bad
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from vitrail.data.sources.source import Source
from vitrail.runtime.deferred import DeferredMetrics

PATIENT = 20  # steps on end for which a task may be alarmed: the first ones of a run may look so


class Collapsed(ValueError):
    """Nothing is learned any more, and to go on would not change that."""


class Guard:
    """alarm: the task's. indices: of a step's images in the source. newest: the last good checkpoint."""

    def __init__(
        self,
        alarm: Callable[[dict[str, float]], str],
        folder: Path,
        source: Source,
        indices: Callable[[int], Iterable[int]],
        newest: Callable[[], str],
    ) -> None:
        self.alarm, self.folder, self.newest = alarm, folder, newest
        self.source, self.indices = source, indices
        self.since: int | None = None
        self.good = ""  # the newest checkpoint then

    def __call__(self, steps: Iterable[DeferredMetrics]) -> dict[str, float]:
        """The last one's numbers. ValueError where a loss or a norm is not finite, because such weights are never
        saved; Collapsed where the task has been alarmed for PATIENT steps."""
        values: dict[str, float] = {}
        for deferred in steps:
            values = deferred.values()
            self._finite(deferred.step, values)
            words = self.alarm(values)
            if not words:
                self.since = None
            elif self.since is None:
                self.since, self.good = deferred.step, self.newest()
            elif deferred.step - self.since >= PATIENT:
                raise Collapsed(
                    f"since step {self.since + 1} {words}. Nothing is learned any more; the last good checkpoint is "
                    f"{self.good}."
                )
        return values

    def _finite(self, step: int, values: dict[str, float]) -> None:
        loss, norm = values["loss"], values["gradient_norm"]
        if math.isfinite(loss + norm):
            return
        names, bad = [self.source.name(int(i)) for i in self.indices(step)], self.folder / "bad-batch.txt"
        bad.write_text("\n".join(names) + "\n")
        raise ValueError(
            f"the loss is {loss} and the gradient's norm {norm} at step {step + 1}, on {', '.join(names[:3])} and "
            f"others ({bad} lists all); the last good checkpoint is {self.newest()}. A lower learning rate than "
            f"{values['lr']:.2g} usually helps: --optim.lr."
        )

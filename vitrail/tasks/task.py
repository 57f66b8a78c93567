"""The Task: owns a model and turns a batch into a loss. `task(batch)` is the only thing that the loop calls (law 1)."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from vitrail.batch import Batch

Metrics = dict[str, Tensor]


class Task(nn.Module, ABC):
    """Three methods; `predict` always has "features"."""

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """(loss, metrics): a scalar that carries the gradient, and detached scalars to be logged."""

    @abstractmethod
    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """What the model says of each image; "features" (B, D) among it."""

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step: teachers and schedules of the task's own."""

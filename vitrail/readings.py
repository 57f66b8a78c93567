"""A step's metrics, on their way from the device to us, and nobody waits for them.

    reading = Reading(step, {"loss": loss, "gradient_norm": norm}, {"lr": 1e-3})
    ...                                     # the next step goes to the device meanwhile
    reading.values()                        # {"loss": 2.3, ...}

A number that is asked for at once makes the device idle: it has nothing to do until we have read it and sent more.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class Reading:
    """Scalars of one device, and numbers that are known already. step: from 0."""

    def __init__(self, step: int, metrics: Mapping[str, Tensor], known: Mapping[str, float]) -> None:
        self.step, self.names, self.known = step, tuple(metrics), known
        # One copy for all, into memory that the device writes by itself (torch pins it, where it is asynchronous).
        self.numbers = torch.stack([value.detach() for value in metrics.values()]).to("cpu", non_blocking=True)
        self.arrived = None
        if next(iter(metrics.values())).is_cuda:
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def values(self) -> dict[str, float]:
        """All of them, as soon as the device has come so far."""
        if self.arrived:
            self.arrived.synchronize()
        return {**dict(zip(self.names, self.numbers.tolist(), strict=True)), **self.known}

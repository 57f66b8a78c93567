"""k nearest neighbours on frozen features, by DINO's protocol (Caron et al., 2021, eval_knn.py).

Features are normalised to length 1; each of the k most similar training images votes for its class with weight
exp(similarity / 0.07). k = 20 is the score, whatever turns out best on these images; the others are told beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64

from vitrail.evaluate.evaluator import Evaluator, Judged, Validation
from vitrail.evaluate.features import features
from vitrail.evaluate.results import accuracy_interval

CHUNK = 2**26  # similarities at once


@dataclass(frozen=True)
class Knn(Evaluator):
    """The first k is the score."""

    kind: ClassVar[str] = "knn"
    head: ClassVar[bool] = False

    k: tuple[int, ...] = (20, 10, 100, 200)
    """Neighbours that vote; of fewer training images, all."""
    temperature: float = 0.07
    """Of the weights."""

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1 or not self.temperature > 0:
            raise ValueError(f"k is {self.k} and temperature {self.temperature}; both must be above 0.")

    def run(self, task: Judged, data: Validation) -> Iterator[tuple[str, float]]:
        """Yields ("knn", accuracy), its 95 % interval as "knn_low" and "knn_high", ("knn_10", ...) for the other k, and
        "samples". Without training images each image is judged by the others. ValueError as `features`."""
        test = features(task, data)
        bank = features(task, data.bank()) if data.train is not None else test
        found = neighbours(test.values, bank.values, max(self.k), own=bank is test)
        scores = dict[int, float]()
        for k in self.k:
            cosines, places = found[0][:, :k], found[1][:, :k]
            said = votes(cosines, places, bank.targets, bank.classes, self.temperature).argmax(1)
            scores[k] = float((said == test.targets).mean())
        score, *others = scores.items()
        yield "knn", score[1]
        low, high = accuracy_interval(round(score[1] * len(test)), len(test))
        yield "knn_low", low
        yield "knn_high", high
        for k, value in others:
            yield f"knn_{k}", value
        yield "samples", float(len(test))


def neighbours(
    queries: Float[np.ndarray, "N D"], bank: Float[np.ndarray, "M D"], k: int, own: bool = False
) -> tuple[Float[np.ndarray, "N k"], Int64[np.ndarray, "N k"]]:
    """(cosines, places) of the most similar in the bank, best first; of fewer than k, all. own: the queries are the
    bank, and none is its own neighbour."""
    one, other = (F.normalize(torch.from_numpy(np.asarray(x, np.float32)), dim=1) for x in (queries, bank))
    k = min(k, len(bank) - own)
    if k < 1:
        raise ValueError(f"{len(bank)} image has no neighbours.")
    cosines, places = list[torch.Tensor](), list[torch.Tensor]()
    for start in range(0, len(one), step := max(1, CHUNK // len(bank))):
        alike = one[start : start + step] @ other.T
        if own:
            alike.diagonal(start).fill_(-torch.inf)
        best = alike.topk(k)
        cosines.append(best.values)
        places.append(best.indices)
    return torch.cat(cosines).numpy(), torch.cat(places).numpy()


def votes(
    cosines: Float[np.ndarray, "N k"],
    places: Int64[np.ndarray, "N k"],
    labels: Int64[np.ndarray, "M"],
    classes: int,
    temperature: float,
) -> Float[np.ndarray, "N K"]:
    """The sum of the weights of each class among the neighbours, the most similar one's being 1."""
    weights = np.exp((cosines - cosines[:, :1]).astype(np.float64) / temperature)
    found = np.zeros((len(cosines), classes))
    np.add.at(found, (np.arange(len(cosines))[:, None], labels[places]), weights)
    return found

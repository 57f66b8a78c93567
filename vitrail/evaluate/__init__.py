"""Evaluators: each runs a task over the validation images and yields (name, value). The kinds that ship are named
here."""

from vitrail.evaluate.accuracy import Accuracy
from vitrail.evaluate.attentive import Attentive
from vitrail.evaluate.calibration import Calibration
from vitrail.evaluate.copies import Copies
from vitrail.evaluate.evaluator import Evaluator, Result, Validation
from vitrail.evaluate.fewshot import Fewshot
from vitrail.evaluate.knn import Knn
from vitrail.evaluate.labels import Labels
from vitrail.evaluate.linear import Linear
from vitrail.evaluate.robustness import Robustness
from vitrail.evaluate.watch import Watch

__all__ = [
    "Accuracy",
    "Attentive",
    "Calibration",
    "Copies",
    "Evaluator",
    "Fewshot",
    "Knn",
    "Labels",
    "Linear",
    "Result",
    "Robustness",
    "Validation",
    "Watch",
]

"""Evaluators: each runs a task over the validation images and yields (name, value). The kinds that ship are named
here."""

from vitrail.evaluate.accuracy import Accuracy
from vitrail.evaluate.evaluator import Evaluator, Result, Validation
from vitrail.evaluate.robustness import Robustness

__all__ = ["Accuracy", "Evaluator", "Result", "Robustness", "Validation"]

"""What evaluators found, as a document for programs and as text for people.

found = document(judge(evaluators, task, data))     # {metrics, samples, interval, per_class}
print(text(found))                                  # accuracy 86.9% (85.3% to 88.3%) on 2,000 images; loss 0.36
"""

import math
from collections.abc import Mapping
from typing import Any

from vitrail.evaluate.evaluator import Result
from vitrail.evaluate.results import ClassificationResult, accuracy_interval, agreement

Found = tuple[Mapping[str, float], Mapping[str, Result]]

WORST = 3  # classes that are named


def document(found: Found, small: Found | None = None) -> dict[str, Any]:
    """The measurements for JSON; an undefined rate is null. small: the same in int8."""
    numbers, result = found[0], found[1].get("classification")
    document = {"metrics": dict(numbers), "samples": int(numbers["samples"]), "interval": interval(numbers)}
    document |= {name: said for name, other in found[1].items() if (said := other.document()) is not None}
    document["found"] = [line for other in found[1].values() for line in other.lines()]
    if isinstance(result, ClassificationResult):
        rates = result.per_class()
        columns = {name: getattr(rates, name).tolist() for name in ("precision", "recall", "f1")}
        document["per_class"] = [
            {"label": name, "images": int(rates.support[place])}
            | {rate: None if math.isnan(values[place]) else values[place] for rate, values in columns.items()}
            for place, name in enumerate(result.class_names)
        ]
    if small is not None:
        document["int8"] = {"metrics": dict(small[0]), "interval": interval(small[0])}
        other = small[1].get("classification")
        if isinstance(result, ClassificationResult) and isinstance(other, ClassificationResult):
            document["int8"]["same"] = agreement(result, other)
    return document


def text(document: Mapping[str, Any]) -> str:
    """A document for people, with the weakest classes."""
    numbers, first = document["metrics"], headline(document["metrics"])
    bounded = {name: bounds for name in numbers if (bounds := _bounds(numbers, name))}
    known = ("samples", "unreadable", first.partition(" ")[0])
    known += (*(f"{name}{end}" for name in bounded for end in ("", "_low", "_high")),)
    others = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if name not in known)
    lines = [f"{first} on {document['samples']:,} images" + (f"; {others}" if others else "")]
    named = ((name, bounds) for name, bounds in bounded.items() if name != first.partition(" ")[0])
    lines += [f"{name} {_with(numbers[name], bounds)}" for name, bounds in named]
    lines += document.get("found", ())
    if rows := [row for row in document.get("per_class", ()) if row["images"]]:
        weakest = sorted(rows, key=lambda row: row["f1"])[:WORST]
        lines.append(f"the weakest classes, by F1: {', '.join('{label} {f1:.2f}'.format(**row) for row in weakest)}")
    if small := document.get("int8"):
        same = f"; {small['same']:.2%} of the answers are the same" if "same" in small else ""
        lines.append(f"in int8: {headline(small['metrics'])}{same}")
    if unread := numbers.get("unreadable"):
        lines.append(f"images that could not be read and were left out: {unread:,.0f}")
    return "\n".join(lines)


def headline(numbers: Mapping[str, float]) -> str:
    """ "accuracy 86.9% (85.3% to 88.3%)", with the interval that holds the true one 95 times in 100; or "mAP 61.2%"; or
    the first metric."""
    if bounds := interval(numbers):
        return f"accuracy {_with(numbers['accuracy'], bounds)}"
    name, value = ("mAP", numbers["mAP"]) if "mAP" in numbers else next(iter(numbers.items()))
    if bounds := _bounds(numbers, name):
        return f"{name} {_with(value, bounds)}"
    return f"mAP {value:.1%}" if name == "mAP" else f"{name} {value:.4g}"


def interval(numbers: Mapping[str, float]) -> tuple[float, float] | None:
    """The accuracy's 95 % interval; None for mean average precision, which has none so simple."""
    if "accuracy" not in numbers:
        return None
    samples = round(numbers["samples"])
    return accuracy_interval(round(numbers["accuracy"] * samples), samples)


def _bounds(numbers: Mapping[str, float], name: str) -> tuple[float, float] | None:
    """The interval that an evaluator yields with a number, as NAME_low and NAME_high."""
    low, high = (numbers.get(f"{name}_{end}") for end in ("low", "high"))
    return None if low is None or high is None else (low, high)


def _with(value: float, bounds: tuple[float, float]) -> str:
    return f"{value:.1%} ({bounds[0]:.1%} to {bounds[1]:.1%})"

"""A ClassificationResult for people: how good the model is, at what, and where it goes wrong.

render("run.html", classified=[section(result, source, channels=3)], ...)    # by templates/classification.html

source: the one that was evaluated; its images are read again, and those that can no longer be read are not shown.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.data.sources.source import Source
from vitrail.evaluate.results import BINS, ClassificationResult, MultiLabel, SingleLabel, accuracy_interval
from vitrail.report.charts import bars, heat
from vitrail.report.html import Figure, Thumbnail, of_source, percent, short

MATRIX, PAIRS = 50, 20  # classes up to which a confusion matrix can be read; rows of a table where there are more
WORST, NARROW = 20, 5  # images of mistakes, and of what was right, but only just
Labelled = SingleLabel | MultiLabel
DRILLED, EACH = 20, 8  # classes whose mistakes are shown, and how many of each


def section(
    result: ClassificationResult, source: Source, channels: int, looks: Callable[[int], Thumbnail | None] | None = None
) -> dict[str, Any]:
    """The values that the template lays out. channels: of the images that the model reads. looks: where it looks in an
    image of the source, shown beside the worst mistakes."""
    assert isinstance(result, Labelled)
    found = {"metrics": result.metrics, "images": len(result.indices), "unreadable": len(result.problems)}
    worst = list(_figures(result, result.worst(WORST), source, channels, looks))
    found |= {"worst": worst, "narrow": [], "looks": looks is not None, "wrong": []}
    if isinstance(result, SingleLabel):
        correct = np.flatnonzero(result.correct)
        narrow = correct[np.argsort(result.confidence[correct], kind="stable")[:NARROW]]
        found["narrow"] = list(_figures(result, narrow, source, channels))
        found["wrong"] = list(_by_class(result, source, channels))
        return found | _single(result) | _calibration(result)
    return found | _several(result)


def _single(result: SingleLabel) -> dict[str, Any]:
    names, rates, pairs = result.class_names, result.per_class(), result.pairs()
    support, fractions = rates.support.tolist(), np.stack([rates.precision, rates.recall, rates.f1], 1).tolist()
    often = {pair.truth: f"{names[pair.predicted]} ({pair.count:,})" for pair in reversed(pairs)}  # the first one stays
    classes = [
        [names[n], f"{support[n]:,}", *map(percent, fractions[n]), fractions[n][-1], often.get(n, "")]
        for n in np.lexsort((rates.f1, rates.support == 0)).tolist()  # classes without images last
    ]
    confused = [
        [names[pair.truth], names[pair.predicted], f"{pair.count:,}", percent(pair.count / support[pair.truth])]
        for pair in pairs[:PAIRS]
    ]
    most = pairs[0] if pairs else None
    back = [pair for pair in pairs if most and (pair.predicted, pair.truth) == (most.truth, most.predicted)]
    return {
        "single": True,
        "score": result.metrics["accuracy"],
        "interval": accuracy_interval(int(result.correct.sum()), len(result.indices)),
        "names": names,
        "support": support,
        "mistake": most,
        "back": back[0] if back else None,
        "classes": classes,
        "matrix": heat(result.confusion(), names) if len(names) <= MATRIX else None,
        "pairs": confused,
    }


def _calibration(result: SingleLabel) -> dict[str, Any]:
    found = result.calibration()
    remarks = [
        f"{percent(n / BINS)} to {percent((n + 1) / BINS)} sure: {count:,} images, {percent(accuracy)} right"
        for n, (count, accuracy) in enumerate(zip(found.count.tolist(), found.accuracy.tolist(), strict=True))
    ]
    accuracy = bars("Accuracy by confidence", found.accuracy, remarks, diagonal=True)
    images = bars("Images by confidence", found.count.astype(np.float64), remarks)
    return {"confidence": float(result.confidence.mean()), "error": found.error, "charts": [accuracy, images]}


def _several(result: MultiLabel) -> dict[str, Any]:
    rates, precisions = result.per_class(), result.average_precisions()
    fractions = np.stack([precisions, rates.precision, rates.recall, rates.f1], 1).tolist()
    rows = [
        [result.class_names[n], f"{rates.support[n]:,}", *map(percent, fractions[n]), fractions[n][0]]
        for n in np.argsort(precisions, kind="stable").tolist()  # NaN comes last
    ]
    return {"single": False, "score": result.metrics["mAP"], "classes": rows}


def _by_class(result: SingleLabel, source: Source, channels: int) -> Iterator[tuple[str, int, list[Figure]]]:
    """(class, its mistakes, some of them with images), those with the most mistakes first."""
    missed = np.bincount(result.targets[~result.correct], minlength=len(result.class_names))
    for number in np.argsort(-missed, kind="stable")[:DRILLED].tolist():
        wrong = np.flatnonzero(~result.correct & (result.targets == number))
        if len(wrong):
            first = wrong[np.argsort(-result.confidence[wrong], kind="stable")[:EACH]]
            yield result.class_names[number], len(wrong), list(_figures(result, first, source, channels))


def _figures(
    result: Labelled,
    places: NDArray[np.int64],
    source: Source,
    channels: int,
    looks: Callable[[int], Thumbnail | None] | None = None,
) -> Iterator[Figure]:
    """Those of the images that can still be read, each with what the template says of it."""
    for place in places.tolist():
        index = int(result.indices[place])
        if shown := of_source(source, index, channels):
            if looks and (seen := looks(index)):
                shown.append(seen)
            yield shown, {"file": short(source.name(index))} | _said(result, place)


def _said(result: Labelled, place: int) -> dict[str, Any]:
    """The names of what was predicted and, where that is not the same, of the truth."""
    names = np.array(result.class_names, object)
    if isinstance(result, SingleLabel):
        truth = None if result.correct[place] else [names[result.targets[place]]]
        return {"predicted": [names[result.predicted[place]]], "sure": float(result.confidence[place]), "truth": truth}
    order = np.argsort(-result.logits[place], kind="stable")
    predicted = [names[n] for n in order if result.logits[place, n] >= 0]
    return {"predicted": predicted, "sure": None, "truth": names[result.targets[place]].tolist()}

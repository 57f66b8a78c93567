"""An examination for people: pieces of a page that say how good a model is, at what, and where it goes wrong.

page = document("pets", [headline(examination), *details(examination, source, channels=3)])

source: the one that was examined; its pictures are read again, those that cannot be any more are not shown.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vitrail.data.sources.source import Source, pixels
from vitrail.evaluate.results import BINS, ClassificationResult, MultiLabel, SingleLabel, accuracy_interval
from vitrail.report.charts import bars, columns, heat, meter, shorten, side_by_side
from vitrail.report.html import Html, folded, gallery, join, paragraph, section, table

MATRIX = 50  # classes, up to which a confusion matrix can be read
ROWS = 20  # of a table, before the rest is folded away
PICTURES, BARE = 20, 5  # of mistakes, and of what was right, but only just
SURE = 0.02  # distance of mean confidence from accuracy, below which there is nothing to say
NAME = 36  # columns of a name below its picture


def headline(examination: ClassificationResult) -> Html:
    """The one number, how far to trust it, and the most frequent mistake, in words."""
    found, count = examination.metrics, len(examination.indices)
    mixed = Html("")
    if isinstance(examination, SingleLabel):
        low, high = accuracy_interval(int(examination.right.sum()), count)
        number, text = percent(found["accuracy"]), f"of {count:,} held-back images are right. "
        text += f"Of all images like these, {percent(low)} to {percent(high)} are (with 95\u202f% confidence). "
        if "top5" in found:
            text += f"The truth is among the five best answers for {percent(found['top5'])}. "
        mixed = _mixed_up(examination)
    else:
        number = percent(found["mAP"])
        text = f"is the mean average precision over the classes, on {count:,} held-back images. "
        text += f"F1 of all decisions at a probability of one half is {found['f1']:.3f}. "
    if examination.problems:
        text += f"Left out, for they could not be read: {len(examination.problems):,}."
    lead = join(Html('<p class="lead">'), text, Html("</p>\n"))
    return join(Html(f'<section>\n<p class="big">{number}</p>\n'), lead, mixed, Html("</section>"))


def details(examination: ClassificationResult, source: Source, channels: int) -> Iterator[Html]:
    """One section after the other: classes, what is taken for what, the worst mistakes, calibration."""
    if isinstance(examination, SingleLabel):
        yield from _of_one(examination, source, channels)
    else:
        assert isinstance(examination, MultiLabel)
        yield from _of_several(examination, source, channels)


def percent(share: float) -> str:
    """A share in words, to a tenth: 0.86954 is 87.0 %; only 1 is 100.0 %; NaN is –."""
    return "–" if np.isnan(share) else f"{100 * share if share == 1 else min(100 * share, 99.9):.1f}\u202f%"


def _mixed_up(examination: SingleLabel) -> Html:
    pairs, names, support = examination.pairs(), examination.class_names, examination.per_class().support
    if not pairs:
        return paragraph("There is not one mistake.")
    most = pairs[0]
    back = next((pair.count for pair in pairs if (pair.truth, pair.taken) == (most.taken, most.truth)), 0)
    other = f", and {back:,} of {support[most.taken]:,} the other way round" if back else ""
    counted = f": {most.count:,} of {support[most.truth]:,} images{other}."
    return paragraph("Most often, ", _name(names[most.truth]), " was taken for ", _name(names[most.taken]), counted)


def _of_one(examination: SingleLabel, source: Source, channels: int) -> Iterator[Html]:
    names, rates = examination.class_names, examination.per_class()
    taken = {pair.truth: pair for pair in reversed(examination.pairs())}  # the most frequent is what stays
    rows = []
    for number in np.lexsort((rates.f1, rates.support == 0)).tolist():  # those without images last
        mistake = f"{names[taken[number].taken]} ({taken[number].count:,})" if number in taken else ""
        shares = [float(rate[number]) for rate in (rates.precision, rates.recall, rates.f1)]
        cells = [names[number], f"{rates.support[number]:,}", *map(percent, shares), meter(shares[-1]), mistake]
        rows.append(cells)
    headers = ["class", "images", "precision", "recall", "F1", "", "most often taken for"]
    yield section("Classes, the weakest first", _long(headers, rows, [1, 2, 3, 4]))
    yield section("What is taken for what", _confused(examination))
    yield section("The worst mistakes", *_mistakes(examination, source, channels))
    yield section("How far its confidence can be trusted", *_calibration(examination))


def _confused(examination: SingleLabel) -> Html:
    names = examination.class_names
    if len(names) <= MATRIX:
        words = "Rows are the truth, columns the answers. Every row shows where its images went."
        return join(paragraph(words), heat(examination.confusion(), names))
    support, rows = examination.per_class().support, []
    for pair in examination.pairs()[:ROWS]:
        share = percent(pair.count / support[pair.truth])
        rows.append([names[pair.truth], names[pair.taken], f"{pair.count:,}", share])
    return table(["truth", "taken for", "images", "of the class"], rows, [2, 3])


def _mistakes(examination: SingleLabel, source: Source, channels: int) -> Iterator[Html]:
    names, worst, right = examination.class_names, examination.worst(PICTURES), np.flatnonzero(examination.right)

    def caption(place: int) -> Html:
        answer = _name(names[examination.predicted[place]])
        truth = "" if examination.right[place] else join("\nis ", _name(names[examination.targets[place]]))
        return join(answer, f", {percent(examination.confidence[place])} sure", truth)

    if len(worst):
        yield paragraph("Wrong, and most sure of it. Images with a wrong label show up here, too.")
        yield _pictures(worst, caption, examination, source, channels)
    else:
        yield paragraph("There are none.")
    if len(right):
        yield Html("<h3>Right, but only just</h3>\n")
        bare = right[np.argsort(examination.confidence[right], kind="stable")[:BARE]]
        yield _pictures(bare, caption, examination, source, channels)


def _calibration(examination: SingleLabel) -> Iterator[Html]:
    found, sure = examination.calibration(), float(examination.confidence.mean())
    right = examination.metrics["accuracy"]
    what = "too sure of itself" if sure > right else "not sure enough of itself"
    if abs(sure - right) < SURE:
        what = "as sure of itself as it should be"
    yield paragraph(
        f"It is {percent(sure)} sure on average, and {percent(right)} are right: it is {what}. The mean distance of "
        f"confidence from accuracy, the expected calibration error, is {percent(found.error)}."
    )
    remarks = [
        f"{percent(place / BINS)} to {percent((place + 1) / BINS)} sure: {count:,} images, {percent(share)} right"
        for place, (count, share) in enumerate(zip(found.count.tolist(), found.accuracy.tolist(), strict=True))
    ]
    yield side_by_side(
        bars("Share that is right, by confidence", found.accuracy, remarks, diagonal=True),
        bars("Images, by confidence", found.count.astype(np.float64), remarks),
    )


def _of_several(examination: MultiLabel, source: Source, channels: int) -> Iterator[Html]:
    names, rates, precisions = examination.class_names, examination.per_class(), examination.average_precisions()
    rows = []
    for number in np.argsort(precisions, kind="stable").tolist():  # NaN comes last
        shares = [float(rate[number]) for rate in (precisions, rates.precision, rates.recall, rates.f1)]
        rows.append([names[number], f"{rates.support[number]:,}", *map(percent, shares), meter(shares[0])])
    headers = ["class", "images", "average precision", "precision", "recall", "F1", ""]
    yield section("Classes, the weakest first", _long(headers, rows, range(1, 6)))

    def caption(place: int) -> Html:
        logits = examination.logits[place]
        said = [n for n in np.argsort(-logits, kind="stable").tolist() if logits[n] >= 0]
        return join(_names(names, said), "\nis ", _names(names, np.flatnonzero(examination.targets[place]).tolist()))

    worst = examination.worst(PICTURES)
    about = paragraph("The images with the greatest loss. Those with a wrong or missing label show up here, too.")
    yield section("The worst mistakes", about, _pictures(worst, caption, examination, source, channels))


def _pictures(
    places: NDArray[np.int64],
    caption: Callable[[int], Html],
    examination: ClassificationResult,
    source: Source,
    channels: int,
) -> Html:
    """Those of the images that can still be read, each with its caption and its name."""
    shown = []
    for place in places.tolist():
        try:
            content, _, name, _ = source[int(examination.indices[place])]
            picture = pixels(content, channels, name)
        except ValueError:  # it has gone since it was examined
            continue
        end = name if columns(name) <= NAME else "…" + name[1 - NAME :]
        shown.append((picture, join(caption(place), Html('\n<bdi class="file">'), end, Html("</bdi>"))))
    return gallery(shown)


def _name(name: str) -> Html:
    """A class's name in a sentence, whatever its direction."""
    return join(Html("<b><bdi>"), shorten(name, NAME) or "(no name)", Html("</bdi></b>"))


def _names(names: Sequence[str], numbers: Sequence[int]) -> Html:
    """Up to three of them."""
    few = join(*(join(", " if place else "", _name(names[n])) for place, n in enumerate(numbers[:3])))
    return join(few or "nothing", f" and {len(numbers) - 3} more" if len(numbers) > 3 else "")


def _long(headers: Sequence[str], rows: Sequence[Sequence[str]], numeric: Collection[int]) -> Html:
    """A table of which only the first rows are open."""
    if len(rows) <= ROWS * 2:
        return table(headers, rows, numeric)
    return join(
        table(headers, rows[:ROWS], numeric),
        folded(f"All {len(rows):,} classes", table(headers, rows, numeric)),
    )

"""Which maps of where a model looks are faithful: each method against random orders, and a model with other weights.

    python -m benchmarks.faithful RUN DATA --images 500

Patches are removed most important first and in 20 random orders (vitrail/explain/faithful.py), for the class that the
model predicts. "gain" is the area under the class's probability of random orders less that of the map: above 0 it
knows more than chance. Images are evenly spaced among those to validate on; differences of methods are paired.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence

from benchmarks import command
from benchmarks.command import positive
from benchmarks.machine import table
from benchmarks.rounds import Record, say

METHODS, BATCH = ("gradient", "legrad", "rollout", "attention"), 50


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Yields after each method."""
    import torch

    from vitrail import Pipeline
    from vitrail.data.images.geometry import centred
    from vitrail.data.sources.fingerprint import spread
    from vitrail.data.sources.open import Data, open_splits
    from vitrail.explain.explanation import check
    from vitrail.explain.faithful import randomised, removal
    from vitrail.explain.relevance import relevance

    torch.manual_seed(0)
    pipeline, source = Pipeline.load(options.model), open_splits(Data(options.data)).val
    task, how = pipeline.task, pipeline.preprocessing
    model = check(task, "gradient", faithfulness=True)
    pixels = []
    for index in spread(len(source), min(options.images, len(source))):
        found = pipeline.open(source[int(index)].image, source.name(int(index)))
        view = centred(found.size, how).apply(found.decode(channels=len(how.mean)))
        pixels.append(torch.from_numpy(view.transpose(2, 0, 1).copy()))
    images = task.input(torch.stack(pixels).to(next(task.parameters()).device))
    with torch.no_grad():
        classes = torch.cat([model(some).argmax(-1) for some in images.split(BATCH)])
    for method in METHODS:
        began, gains, least, alike = time.perf_counter(), [], [], []
        for some, chosen in zip(images.split(BATCH), classes.split(BATCH), strict=True):

            def maps(other, some=some, chosen=chosen, method=method):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
                return relevance(other, some, method, chosen[:, None])[:, 0]

            found = removal(model, some, maps(model), chosen)
            area = found.area(found.random).mean(1)
            gains += (area - found.area(found.most)).tolist()
            least += (found.area(found.least) - area).tolist()
            alike += randomised(model, maps).tolist()
        records.append({"case": method, "gains": gains, "least": least, "alike": alike, "errors": {}})
        say(f"{method}: {len(gains)} images in {time.perf_counter() - began:.0f} s")
        yield


def text(records: list[Record]) -> str:
    """A line for each method, beside the first one."""
    if not records:
        return "Nothing was measured."
    first, rows = records[0], []
    for record in records:
        ahead = [a - b for a, b in zip(first["gains"], record["gains"], strict=True)]
        beside = interval(ahead) if record is not first else ""
        alike = sum(record["alike"]) / len(record["alike"])
        rows.append([record["case"], interval(record["gains"]), interval(record["least"]), f"{alike:.2f}", beside])
    titles = ["", "gain", "least first - random", "correlation with other weights", f"{first['case']} ahead by"]
    return f"{len(first['gains'])} images\n\n{table(titles, rows)}"


def interval(values: Sequence[float]) -> str:
    """The mean, with its 95 % interval over the images."""
    mean = sum(values) / len(values)
    half = 1.96 * math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1) / len(values))
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser = command.parser("faithful", __doc__, rounds=None)
    parser.add_argument("model", help="a run or model folder with a ViT")
    parser.add_argument("data", help="images with classes")
    parser.add_argument("--images", type=positive, default=500)
    return command.run("faithful", parser.parse_args(arguments), measure, text)


if __name__ == "__main__":
    sys.exit(main())

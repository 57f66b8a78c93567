"""What judging features costs, beside scikit-learn on the same features, and explaining, beside a forward pass.

    python -m benchmarks.judging --rounds 5           # --only knn,fewshot: some

Features: S/16 on 224 px images in memory, beside the bare forward pass of these batches. kNN: 20 neighbours of 10,000
queries among 50,000 of width 384, beside KNeighborsClassifier (brute, cosine). Few-shot: 1,000 classes of 10 shots,
width 1,024, l2 by leave-one-out of nine, beside RidgeCV, which does the same. Grid: 13 penalties of a linear probe on
20,000 x 384 of 10 classes side by side, beside one after another, and LogisticRegression one after another. Rollout,
gradient: the map of one class of 8 images by S/16 at 224 px, beside their bare forward pass; aims: 2.6 and 4 times it.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from benchmarks import command
from benchmarks.machine import table
from benchmarks.rounds import Record, new, ratio, spread, take_turns, values

CASES = ("features", "knn", "fewshot", "grid", "rollout", "gradient")
HEADERS = ("case", "who", "seconds", "ours / its own")
Work = dict[str, Callable[[], Any]]


def clouds(count: int, width: int, classes: int, seed: int = 0) -> tuple[Any, Any]:
    """Points around a centre for each class, and their classes."""
    draw, y = np.random.default_rng(seed), np.arange(count) % classes
    centres = np.random.default_rng(99).standard_normal((classes, width))
    return (centres[y] + 3 * draw.standard_normal((count, width))).astype(np.float32), y


def features() -> Work:
    """Of 64 images."""
    import torch

    from vitrail.data.images.preprocessing import Preprocessing
    from vitrail.data.sources.source import Arrays
    from vitrail.evaluate import Validation
    from vitrail.evaluate import features as judging
    from vitrail.models.zoo import configure
    from vitrail.runtime.inference import batch_size, prepared
    from vitrail.tasks import Classify

    how = Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3)
    task = Classify(configure("ViT-S/16", classes=10).build("cpu"), how)
    task.model.init_weights(0)
    task, size = prepared(task), batch_size(task.model.config, (224, 224), torch.device("cpu"))
    images = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3), np.uint8)
    source = Arrays(images, np.arange(64) % 10, tuple("abcdefghij"), "noise")
    data = Validation(source, how, lambda samples: task.config.collate(samples, source), size)
    batches = [*data.batches()]
    ours = lambda: [*judging._parts(task, data, 0, [])]  # noqa: E731
    return {"vitrail": ours, "bare forward": lambda: [task.predict(batch) for batch in batches]}


def knn() -> Work:
    """Ten thousand queries."""
    from sklearn.neighbors import KNeighborsClassifier

    from vitrail.evaluate.knn import neighbours, votes

    (bank, labels), (queries, _) = clouds(50_000, 384, 10), clouds(10_000, 384, 10, seed=1)
    ours = lambda: votes(*neighbours(queries, bank, 20), labels, 10, 0.07).argmax(1)  # noqa: E731
    weigh = lambda distances: np.exp((1 - distances) / 0.07)  # noqa: E731
    like = KNeighborsClassifier(20, algorithm="brute", metric="cosine", weights=weigh).fit(bank, labels)
    return {"vitrail": ours, "scikit-learn": lambda: like.predict(queries)}


def fewshot() -> Work:
    """Fits with nine values of l2."""
    from sklearn.linear_model import RidgeCV

    from vitrail.evaluate.fewshot import ridge

    x, y = clouds(10_000, 1_024, 1_000)
    classes = int(y.max()) + 1
    rows, z = 2.0 * np.eye(classes)[y] - 1, ((x - x.mean(0)) / x.std(0)).astype(np.float64)
    like = RidgeCV(10.0 ** np.linspace(0, 7, 9))
    return {"vitrail": lambda: ridge(x, y, classes), "scikit-learn": lambda: like.fit(z, rows)}


def grid() -> Work:
    """Thirteen heads to the gradient at which they are compared."""
    import torch
    from sklearn.linear_model import LogisticRegression

    from vitrail.evaluate.linear import PENALTIES, ROUGH, fit

    x, y = clouds(20_000, 384, 10)
    x /= x.std(0)
    given = torch.from_numpy(x)

    def theirs() -> None:
        for l2 in PENALTIES.tolist():
            LogisticRegression(C=1 / (l2 * len(x)), tol=ROUGH, max_iter=300).fit(x, y)

    return {
        "vitrail": lambda: fit(given, y, 10, PENALTIES, ROUGH),
        "one after another": lambda: [fit(given, y, 10, PENALTIES[n : n + 1], ROUGH) for n in range(len(PENALTIES))],
        "scikit-learn": theirs,
    }


def explanation(method: Literal["rollout", "gradient"], batch: int = 8) -> Work:
    """Of a batch of images."""
    import torch

    from vitrail.explain.relevance import relevance
    from vitrail.models.zoo import configure

    model = configure("ViT-S/16", image_size=(224, 224)).build("cpu").eval()
    model.init_weights(0)
    draw = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(model.head.weight, generator=draw)  # of the initial 0 all gradients would be 0
    images = torch.randn(batch, 3, 224, 224, generator=draw)
    classes = torch.arange(batch)[:, None] if method == "gradient" else None
    forward = torch.no_grad()(lambda: model(images))
    return {"vitrail": lambda: relevance(model, images, method, classes), "bare forward": forward}


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Measures the chosen cases, one after the other."""
    import torch

    torch.set_num_threads(options.threads)

    def turn(work: Callable[[], Any]) -> dict[str, Any]:
        own, start = time.process_time(), time.perf_counter()
        work()
        return {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - own}

    explained = {"rollout": partial(explanation, "rollout"), "gradient": partial(explanation, "gradient")}
    for case in options.only:
        made = {"features": features, "knn": knn, "fewshot": fewshot, "grid": grid, **explained}[case]()
        records.append(new(case, "vitrail"))
        turns = {name: lambda work=work: turn(work) for name, work in made.items()}
        take_turns(records[-1], turns, options.rounds, options.until)
        yield


def text(records: list[Record]) -> str:
    """The table."""
    rows = list[list[str]]()
    for record in records:
        ours = values(record, "vitrail")
        for name in record["libraries"]:
            own = values(record, name)
            rows.append([record["case"], name, spread(own), "" if name == "vitrail" else str(ratio(ours, own))])
    return table(HEADERS, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser = command.parser("judging", __doc__)
    parser.add_argument("--only", type=command.names, default=CASES, help="of " + ", ".join(CASES))
    options = parser.parse_args(arguments)
    command.known(options.only, CASES, parser)
    return command.run("judging", options, measure, text)


if __name__ == "__main__":
    sys.exit(main())

"""Images that are in both the training and the validation set, or look as if: what makes accuracy too high.

By pixels, as `vitrail data check` finds them (data/audit/duplicates.py), not by features, which are as near for two
different cats.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vitrail.data.audit.duplicates import alike, copies
from vitrail.data.audit.scan import Scan
from vitrail.evaluate.evaluator import Evaluator, Judged, Result, Validation

SHOWN = 10


@dataclass(frozen=True, eq=False)
class Leaks(Result):
    """(validation image, training image, how they are alike) by name."""

    pairs: tuple[tuple[str, str, str], ...]

    def document(self) -> list[dict[str, Any]]:
        """One entry a validation image: {image, train, how}."""
        return [dict(zip(("image", "train", "how"), pair, strict=True)) for pair in self.pairs]

    def lines(self) -> list[str]:
        """The first ones."""
        head = f"validation images that are among the training images, too: {len(self.pairs):,}"
        return [head, *(f"  {image}: {train} ({how})" for image, train, how in self.pairs[:SHOWN])]


@dataclass(frozen=True)
class Copies(Evaluator):
    """Looks at every image of both sets."""

    kind: ClassVar[str] = "copies"
    head: ClassVar[bool] = False

    def run(self, task: Judged, data: Validation) -> Iterator[tuple[str, float | Leaks]]:
        """Yields ("copies", how many validation images are in the training set or look the same as one there),
        "samples", and ("leaks", which). ValueError without training images."""
        scan = Scan.of({"train": data.bank().source, "val": data.source}, progress=True)
        good = np.flatnonzero(scan.rows["readable"])
        rows, border, found = scan.rows[good], len(data.bank().source), dict[int, tuple[int, str]]()
        groups = copies(rows["file"], rows["pixels"]) + alike(rows["grey"], rows["colour"], rows["pixels"], True)
        for group in groups:
            members = good[list(group.members)].tolist()
            if members[0] < border:
                found |= {row: (members[0], group.how) for row in members if row >= border and row not in found}
        name = {row: scan.record(row).name for pair in found.items() for row in (pair[0], pair[1][0])}
        yield "copies", float(len(found))
        yield "samples", float((good >= border).sum())
        yield "leaks", Leaks(tuple((name[row], name[other], how) for row, (other, how) in sorted(found.items())))

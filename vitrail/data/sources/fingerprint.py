"""A digest of a source, which tells when a run is resumed whether its data has changed.

fingerprint(source)     # {"images": 60000, "classes": [...], "files and labels": "5f0c...", "contents": "91aa..."}

It is the same wherever the data lies: names count from the folder that all of them are in.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.sources.source import Source
from vitrail.data.stream import prefetch

RECORDS, CONTENTS = 10_000, 256


def fingerprint(source: Source) -> dict[str, Any]:
    """The number of images, the class names, and digests of 10,000 names and labels and 256 images at most, evenly
    spaced: it takes a second at any size."""
    places = spread(len(source), RECORDS)
    names, labels = [source.name(index) for index in places], [source.target(index) for index in places]
    absolute = {os.path.isabs(name) for name in names}
    names = [name.replace("://", ":/") for name in names]  # as commonpath has it
    common = os.path.commonpath(map(os.path.dirname, names)) if len(absolute) == 1 else ""
    inner = [name[len(common) :].lstrip("/") for name in names]
    contents = hashlib.sha256()

    def content(index: int) -> bytes | memoryview:
        try:
            content = source[index].image
            return content if isinstance(content, bytes) else np.ascontiguousarray(content).data
        except ValueError:  # then as now
            return b"unreadable"

    for one in prefetch(content, spread(len(source), CONTENTS), 16):
        contents.update(one)
    return {
        "images": len(source),
        "classes": list(source.class_names),
        "files and labels": _digest(inner, labels),
        "contents": contents.hexdigest()[:16],
    }


def code() -> str:
    """A digest of the package's own source files."""
    digest, root = hashlib.sha256(), Path(__file__).parents[2]
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def spread(length: int, count: int) -> list[int]:
    """At most `count` of range(length), evenly spaced."""
    return sorted({int(place) for place in np.linspace(0, length - 1, min(length, count))})


def _digest(names: list[str], labels: list[Any]) -> str:
    records = hashlib.sha256()
    for name, label in zip(names, labels, strict=True):
        records.update(f"{name}\0{label}\n".encode("utf-8", "surrogateescape"))
    return records.hexdigest()[:16]

"""A digest of a source, which tells when a run is resumed whether its data has changed.

fingerprint(source)         # {"images": 60000, "classes": [...], "names and labels": "5f0c...", "pixels": "91aa..."}
"""

import hashlib
from typing import Any

import numpy as np

from vitrail.data.sources.source import Source

RECORDS, CONTENTS = 10_000, 256


def fingerprint(source: Source) -> dict[str, Any]:
    """The number of images, the class names, and digests of 10,000 names and labels and 256 images at most, evenly
    spaced: it takes a second at any size."""
    records, contents = hashlib.sha256(), hashlib.sha256()
    for index in spread(len(source), RECORDS):
        records.update(f"{source.name(index)}\0{source.target(index)}\n".encode("utf-8", "surrogateescape"))
    for index in spread(len(source), CONTENTS):
        try:
            content = source[index][0]
            contents.update(content if isinstance(content, bytes) else np.ascontiguousarray(content).data)
        except ValueError as error:  # unreadable, then as now
            contents.update(str(error).encode("utf-8", "surrogateescape"))
    return {
        "images": len(source),
        "classes": list(source.class_names),
        "names and labels": records.hexdigest()[:16],
        "pixels": contents.hexdigest()[:16],
    }


def spread(length: int, count: int) -> list[int]:
    """At most `count` of range(length), evenly spaced."""
    return sorted({int(place) for place in np.linspace(0, length - 1, min(length, count))})

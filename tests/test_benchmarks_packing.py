"""benchmarks.packing: what is measured is the same work for all. Nothing is timed, and the peers are not installed."""

import io
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from made_sources import put
from photos import encode, photo
from PIL import Image

sys.path.append(str(Path(__file__).parents[1]))  # they are no part of the package

from benchmarks import packing


@pytest.fixture
def data(tmp_path):
    files = {f"data/{i}.{kind}": encode(photo(60 + i, 90), "JPEG") for i, kind in enumerate(["jpg", "JPEG", "JPG"])}
    others = {"data/small.jpg": encode(photo(40, 90), "JPEG"), "data/mask.png": encode(photo(60, 90))}
    return put(tmp_path, files | others)


def test_only_jpegs_that_become_smaller_are_gathered(data):
    copies = packing.gathered([data / "data"], data / "photos", 40, 2)
    assert [str(path.relative_to(data / "photos")) for path in copies] == ["class0/000000.jpg", "class1/000001.jpg"]
    with pytest.raises(ValueError, match="above 90 pixels"):
        packing.gathered([data / "data"], data / "more", 90, 5)


def test_all_make_images_of_the_same_size(data):
    copies = packing.gathered([data / "data"], data / "photos", 40, 9)
    made = packing.small(str(copies[1]), 40)
    assert made["label"] == 1
    with Image.open(io.BytesIO(made["image"])) as image:
        assert (image.format, image.size) == ("JPEG", (59, 40))


@pytest.mark.slow
def test_a_turn_counts_what_was_written(data):
    packing.gathered([data / "data"], data / "photos", 40, 9)
    job = {"name": packing.OURS, "folder": str(data), "size": 40, "images": 3, "each": 2, "cores": 1}
    found = packing.turn(job, Namespace(timeout=60, peers=None))
    assert min(found["seconds"], found["cpu"], found["processor_seconds"]) > 0
    with pytest.raises(packing.WorkerError, match="3 of 4 images"):
        packing.turn(job | {"images": 4}, Namespace(timeout=60, peers=None))
    put(data, {"a/index.json": json.dumps({"chunks": [{"chunk_size": 2}, {"chunk_size": 1}]}).encode()})
    put(data, {f"b/{i}_stats.json": json.dumps({"successes": i}).encode() for i in range(3)})
    assert (packing.made(packing.CHUNKS, data / "a"), packing.made(packing.URLS, data / "b")) == (3, 3)

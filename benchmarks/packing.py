"""Photographs made small once, into files of many: `vitrail data pack --to tar` beside img2dataset and litData.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install img2dataset litdata
    python -m benchmarks.packing --data FOLDER... --peers /tmp/peers/bin/python --size 160 --rounds 5

All make the JPEGs whose shorter side is larger than SIZE that small, as JPEGs of quality 92 in files of equally many,
on one core (taskset) and on two. img2dataset reads URLs: of a server in this process, which has the other core where
one is measured, and of files. It shrinks by OpenCV's area filter, litData's function by Pillow, both to 4:2:0; ours by
bicubic to 4:4:4. A turn is a whole command with its start. "CPU" is its processor time; others disturb that less.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from operator import sub
from pathlib import Path
from threading import Thread
from typing import Any

from benchmarks import command
from benchmarks.machine import ROOT, usable_cores
from benchmarks.pool import KEEP_FREED, WorkerError, environment, finish
from benchmarks.rounds import Record, new, report, spread, take_turns, values

QUALITY, FILES = 92, 8  # of the JPEGs; of many of them
OURS, URLS, PATHS, CHUNKS = "vitrail", "img2dataset", "img2dataset, local files", "litData"
AIM = "Aim: images/s a core at least those of img2dataset and litData (both ratios of time at most 1 beside vitrail's)."


def gathered(places: Sequence[Path], folder: Path, size: int, most: int) -> list[Path]:
    """Class folders with copies of `most` JPEGs that are larger than `size`. ValueError for none."""
    from vitrail.data.images.decode import opened

    paths = [path for place in places for path in sorted(place.rglob("*.[jJ][pP]*[gG]"))]
    found = [path for path in paths if min(opened(path.read_bytes(), str(path)).size) > size]
    if not found:
        raise ValueError(f"--data names no folder with JPEGs whose shorter side is above {size} pixels")
    copies = [folder / f"class{i % 10}" / f"{i:06d}.jpg" for i in range(min(most, len(found)))]
    for path, copy in zip(found, copies, strict=False):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return copies


class Files(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *words: Any) -> None:
        """As http.server calls it."""


class Server(ThreadingHTTPServer):
    """For many connections at once: else some are refused."""

    request_queue_size = 128


def small(path: str, size: int) -> dict[str, Any]:
    """An image as litData stores it. At the module's top, for its processes unpickle it."""
    from PIL import Image

    with Image.open(path) as image:
        image.thumbnail([round(side * size / min(image.size)) for side in image.size])
        image.convert("RGB").save(content := io.BytesIO(), "JPEG", quality=QUALITY)
    return {"image": content.getvalue(), "label": int(Path(path).parent.name[5:])}


def theirs(job: dict[str, Any]) -> None:
    """litData's `optimize` or img2dataset's `download`, in the peers' interpreter."""
    how: dict[str, Any] = {"num_workers": job["cores"], "chunk_size": job["each"]}
    if job["name"] == CHUNKS:
        from litdata import optimize

        make, inputs = partial(small, size=job["size"]), Path(job["folder"], CHUNKS).read_text().split()
        optimize(fn=make, inputs=inputs, output_dir=f"{job['folder']}/out", **how)
        return
    from img2dataset import download

    how = {"resize_mode": "keep_ratio", "resize_only_if_bigger": True, "encode_quality": QUALITY, "retries": 3}
    how |= {"image_size": job["size"], "number_sample_per_shard": job["each"], "processes_count": job["cores"]}
    how |= {"url_list": f"{job['folder']}/{job['name']}", "output_folder": f"{job['folder']}/out"}
    download(output_format="webdataset", input_format="txt", **how)


def made(name: str, out: Path) -> int:
    """How many images are in what a contestant has written."""
    if name == CHUNKS:
        return sum(chunk["chunk_size"] for chunk in json.loads((out / "index.json").read_text())["chunks"])
    files, key = (".parts/*.tar.json", "images") if name == OURS else ("*_stats.json", "successes")
    return sum(json.loads(path.read_text())[key] for path in out.glob(files))


def turn(job: dict[str, Any], options: Namespace) -> dict[str, Any]:
    """A contestant's turn: seconds of an image, CPU seconds of it. WorkerError where images are missing."""
    folder, cores = Path(job["folder"]), job["cores"]
    shutil.rmtree(folder / "out", ignore_errors=True)
    words = [str(options.peers), "-m", "benchmarks.packing", "--one", json.dumps(job)]
    if job["name"] == OURS:
        words = [sys.executable, *f"-m vitrail data pack {folder}/photos {folder}/out --to tar".split()]
        how = {"size": job["size"], "quality": QUALITY, "shard": job["each"], "workers": cores}
        words += [word for name, value in how.items() for word in (f"--{name}", str(value))]
    pinned = ["taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))]
    before, start = os.times(), time.perf_counter()
    finish([*pinned, *words], options.timeout, environment(KEEP_FREED) | {"PYTHONPATH": str(ROOT)})
    seconds, (user, system, *cpu, _) = time.perf_counter() - start, map(sub, os.times(), before)
    if (found := made(job["name"], folder / "out")) != job["images"]:
        raise WorkerError(f"{found:,} of {job['images']:,} images were written")
    times = {"processor_seconds": user + system + sum(cpu), "cpu": sum(cpu) / found}
    return {"seconds": seconds / found, "cores": cores, **times}


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Measures every contestant on one core, then on two."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        copies = gathered(options.data, folder / "photos", options.size, options.images)
        with Server(("127.0.0.1", 0), partial(Files, directory=str(folder))) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            about: dict[str, Callable[[Path], str]] = {PATHS: Path.as_uri, CHUNKS: str}
            about[URLS] = lambda path: f"http://127.0.0.1:{server.server_port}/{path.relative_to(folder)}"
            for name, said in about.items():
                (folder / name).write_text("\n".join(map(said, copies)))
            job = {"folder": str(folder), "size": options.size, "images": len(copies), "each": -(-len(copies) // FILES)}
            for cores in range(1, min(2, usable_cores()) + 1):
                record = new(f"{len(copies):,} JPEGs to {options.size} px, {cores} core{'s' * (cores > 1)}", OURS)
                records.append(record)
                contestants = (OURS, *about) if options.peers else (OURS,)
                turns = {name: partial(turn, job | {"name": name, "cores": cores}, options) for name in contestants}
                take_turns(record, turns, options.rounds, options.until)
                yield
            server.shutdown()


def text(records: list[Record]) -> str:
    """The table, and the aim."""

    def rate(record: Record, name: str) -> str:
        return spread([1 / (seconds * record["libraries"][name]["cores"][0]) for seconds in values(record, name)])

    columns = {"images/s a core": rate, "CPU ms an image": lambda r, n: spread([1e3 * s for s in values(r, n, "cpu")])}
    return "\n\n".join([report(records, columns), AIM])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser = command.parser("packing", __doc__)
    parser.add_argument("--data", type=Path, nargs="*", default=[], metavar="FOLDER", help="with JPEGs")
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="that has img2dataset and litdata")
    parser.add_argument("--size", type=command.positive, default=160, help="shorter side in pixels")
    parser.add_argument("--images", type=command.positive, default=100_000, help="at most so many")
    parser.add_argument("--one", help=SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        theirs(json.loads(options.one))
        return 0
    return command.run("packing", options, measure, text)


if __name__ == "__main__":
    sys.exit(main())

"""Images a second from a store: ours beside our own local loader, litData, webdataset and MosaicML streaming.

    python -m benchmarks.remote --json remote.json --data FOLDER_OF_PHOTOGRAPHS --peers PEERS/bin/python
    python -m benchmarks.remote --order 300000000         # what the order of so many samples costs

PEERS is an environment of its own: pip install torch torchvision litdata webdataset mosaicml-streaming simplejpeg
jaxtyping safetensors rich. The photographs become tars of `vitrail data pack`, which webdataset reads, too, and what
litData and MosaicML write; benchmarks.store serves them on loopback, 20 ms an answer and 100 MB/s in all. Everybody
makes random crops to 224 px, mirrored, in batches of 64, by two processes and with our decoder, so that only the way of
the bytes differs; litData and MosaicML ask by S3, the others by HTTP. Each turn is a fresh process without caches, and
its time is that of the first epoch, from opening the data on. The ratio is the local loader's time divided by theirs.
The store takes part of the same cores, which one on another machine would not: hence the processor's time, too, that
they take themselves.
Last, with one answer in a hundred a fault (500, cut, stalled), how often each of our images came is counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import command, remote_peers
from benchmarks.machine import ROOT
from benchmarks.photographs import photographs
from benchmarks.pool import KEEP_FREED, environment, finish
from benchmarks.rounds import Record, images_per_second, new, report, spread, take_turns, values

IMAGES, SHARD, WORKERS = 6_000, 500, 2
DELAY, RATE, FAULTS = 0.02, 100e6, 0.01
PEERS = ("litdata", "webdataset", "streaming")
TARGETS = "Aims: 0.95 of the local loader's images/s, 1.3 of the best peer's, at most 1.1 of the time with faults."


@contextmanager
def served(folder: Path, faults: float = 0.0) -> Iterator[int]:
    """The port of a store in a process of its own."""
    how = ["--delay", str(DELAY), "--rate", str(RATE), "--faults", str(faults)]
    words = [sys.executable, "-m", "benchmarks.store", str(folder), *how]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def ours(place: str, workers: int) -> dict[str, Any]:
    """An epoch of our loader: seconds an image, and to the first batch; how many images came not exactly once."""
    from vitrail.data.loader import Training, stacked
    from vitrail.data.sources.open import Data, find_splits
    from vitrail.data.stream import stream

    began = time.perf_counter()
    source = find_splits(Data(place))["train"]
    made = Training(source, *remote_peers.how(), stacked, batch=remote_peers.BATCH, seed=0)
    steps = len(source) // remote_peers.BATCH
    seen = [0] * len(source)

    def batches() -> Iterator[int]:
        for batch in stream(made, made.keys(0, steps), workers):
            for number in batch["indices"].tolist():
                seen[number] += 1
            yield len(batch)

    found = remote_peers.timed(batches(), began)
    wrong = sum(count > 1 for count in seen) + steps * remote_peers.BATCH - sum(map(bool, seen))
    return found | {"not once": wrong}


def order(length: int) -> str:
    """What the order of `length` samples costs: memory, a batch of 4,096, and whether an epoch has each once."""
    import resource

    import numpy as np

    from vitrail.data.order import samples

    def kib() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    lines, batch = [], 4096
    for size in sorted({10**5, 10**7, length}):
        samples(0, batch, size, 0)
        before, began = kib(), time.perf_counter()
        for step in range(50):
            samples(step * (size // batch // 50), batch, size, 0)
        each = (time.perf_counter() - began) / 50 * 1e6
        lines.append(f"{size:,} samples: {each:,.0f} µs a batch of {batch:,}, {kib() - before:,} KiB more at most")
    bits = np.zeros(-(-length // 8), np.uint8)
    began = time.perf_counter()
    for start in range(0, length, piece := 2**20):
        found = samples(start // piece, piece, length, 0)[: length - start]
        np.bitwise_or.at(bits, found >> 3, np.left_shift(1, found & 7).astype(np.uint8))
    missing = length - int(np.bitwise_count(bits).sum())
    lines.append(f"one epoch of {length:,} in {time.perf_counter() - began:,.0f} s: {missing:,} samples are missing")
    return "\n".join(lines)


def turn(name: str, place: str, python: str, timeout: float) -> dict[str, Any]:
    """One contestant's epoch, in a fresh process with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        variables = environment(KEEP_FREED) | {"VITRAIL_CACHE": cache, "TMPDIR": cache, "HOME": cache}
        variables |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}
        variables["AWS_ALLOW_HTTP"] = "true"
        module = "benchmarks.remote_peers" if name in PEERS else "benchmarks.remote"
        words = [python if name in PEERS else sys.executable, "-m", module, "--one", json.dumps([name, place])]
        return json.loads(finish(words, timeout, variables, ROOT).splitlines()[-1])


def prepared(options: Namespace, folder: Path) -> Path:
    """The folder that is served: shards, and where there are peers, litdata and mds."""
    from vitrail.data.pack import index, shards
    from vitrail.data.sources.open import Data, find_splits

    splits, store = find_splits(Data(str(photographs(folder, options.data, options.images)))), folder / "store"
    work = shards({"train": splits["train"]}, store / "shards", 256, each=SHARD)
    work.run(every := range(len(work.names)), what="packing")
    index(work, {"train": splits["train"]}, every)
    for name in PEERS[::2] if options.peers else ():
        words = [str(options.peers), "-m", "benchmarks.remote_peers", "--write", name, str(store)]
        finish(words, options.timeout, environment(KEEP_FREED) | {"HOME": str(folder)}, ROOT)
    return store


def measure(options: Namespace, records: list[Record]) -> Iterator[None]:
    """Everybody from the store, in every round; then ours with faults."""
    with tempfile.TemporaryDirectory() as temporary:
        store = prepared(options, Path(temporary))
        with served(store) as port, served(store, FAULTS) as faulty:
            record = new("an epoch", "vitrail, local")
            records.append(record)
            url = f"http://127.0.0.1:{port}/store"
            places = {"vitrail, local": str(store / "shards"), "vitrail": f"{url}/shards"}
            places |= {"vitrail, faults": f"http://127.0.0.1:{faulty}/store/shards"}
            places |= dict.fromkeys(PEERS, url) if options.peers else {}
            turns = {
                name: partial(turn, name, place, str(options.peers), options.timeout) for name, place in places.items()
            }
            take_turns(record, turns, options.rounds, options.until)
            yield


def text(records: list[Record]) -> str:
    """The table, and whether each of our images came once."""
    counts = [
        f"{name}: {sum(found['not once']):,} images came not exactly once"
        for record in records
        for name, found in record["libraries"].items()
        if "not once" in found
    ]
    columns = {
        "images/s": images_per_second,
        "seconds to the first batch": lambda record, name: spread(values(record, name, "first batch")),
        "ms of processors an image": lambda record, name: spread([1e3 * x for x in values(record, name, "busy")]),
    }
    return "\n\n".join([report(records, columns), "; ".join(counts), TARGETS])


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: benchmarks/command.py."""
    parser = command.parser("remote", __doc__)
    parser.description = __doc__
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="photographs instead of drawn ones")
    parser.add_argument("--images", type=command.positive, default=IMAGES, help="as many, over and over")
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="the interpreter of the peers' environment")
    parser.add_argument("--order", type=command.positive, metavar="N", help="only what the order of N samples costs")
    parser.add_argument("--one", help=SUPPRESS)
    options = parser.parse_args(arguments)
    if options.order:
        print(order(options.order))
        return 0
    if options.one:
        _, place = json.loads(options.one)
        print(json.dumps(ours(place, WORKERS)))
        return 0
    if options.peers and not os.access(options.peers, os.X_OK):
        parser.error(f"{options.peers} is not an interpreter")
    return command.run("remote", options, measure, text)


if __name__ == "__main__":
    sys.exit(main())

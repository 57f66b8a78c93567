"""litData, webdataset and MosaicML streaming over a store, with our decoder: run by the interpreter that has them.

PEERS/bin/python -m benchmarks.remote_peers --write litdata STORE         # from the tars in STORE/shards
PEERS/bin/python -m benchmarks.remote_peers --one '["litdata", "http://127.0.0.1:8000/store"]'
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

BATCH, SIZE, WORKERS = 64, 224, 2
CHUNK = 2**24  # bytes of a shard of theirs, about as large as ours
KNOWN = ("litdata", "webdataset", "streaming")


def how() -> tuple[Any, Any]:
    """The preprocessing, and the views of training."""
    from vitrail.data.images.augment import Augment
    from vitrail.data.images.preprocessing import Preprocessing

    half = (0.5, 0.5, 0.5)
    return Preprocessing((SIZE, SIZE), half, half, interpolation="bicubic"), (Augment("inception", flip=0.5),)


def timed(batches: Iterable[int], began: float) -> dict[str, float]:
    """Seconds an image, of the clock and of processors, and to the first batch, since it began; `batches` gives how
    many images each has, and waits in the end for the processes that it uses."""
    several, before = iter(batches), os.times()
    images, first = next(several), time.perf_counter()
    images += sum(several)
    busy = sum(os.times()[:4]) - sum(before[:4])
    return {"seconds": (time.perf_counter() - began) / images, "first batch": first - began, "busy": busy / images}


class Decode:
    """The bytes of a JPEG -> (3, 224, 224) uint8, as our loader crops and mirrors it."""

    def __init__(self) -> None:
        self.how, self.views = how()
        self.key = os.getpid() << 32

    def __call__(self, content: bytes) -> Any:
        """An image, cropped anew each time."""
        import torch

        from vitrail.data.images.augment import draw
        from vitrail.data.images.decode import opened

        self.key += 1
        image = opened(content, "image")
        view, paint = draw(image.size, self.views[0], self.how, self.key, None)
        return torch.from_numpy(paint(view.apply(image.decode(view.crop, 3))).transpose(2, 0, 1).copy())


def images(store: Path) -> Iterator[dict[str, Any]]:
    """The images and labels in the tars."""
    for tar in sorted((store / "shards").glob("*.tar")):
        with tarfile.open(tar) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        for name in sorted(members)[1::2]:
            yield {"image": members[name], "label": int(members[name.replace(".jpg", ".cls")])}


def same(item: Any) -> Any:
    """What litData is given to write."""
    return item


def write(name: str, store: Path) -> None:
    """The tars' images as one of the peers stores them."""
    if name == "litdata":
        import litdata

        litdata.optimize(same, [*images(store)], str(store / "litdata"), chunk_bytes=CHUNK, num_workers=1)
    else:
        from streaming import MDSWriter

        columns = {"image": "bytes", "label": "int"}
        with MDSWriter(out=str(store / "mds"), columns=columns, size_limit=CHUNK) as writer:
            for item in images(store):
                writer.write(item)


def loader(name: str, url: str) -> Any:
    """The batches (images, labels) of one epoch, shuffled."""
    from torch.utils.data import DataLoader

    endpoint, _, bucket = url.rpartition("/")
    decode, count = Decode(), {"batch_size": BATCH, "num_workers": WORKERS}

    def pair(item: dict[str, Any]) -> Any:
        return decode(item["image"]), item["label"]

    if name == "litdata":
        from litdata import StreamingDataLoader, StreamingDataset
        from litdata.streaming import downloader

        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # which its chunks cannot be asked for otherwise

        options = {"endpoint_url": endpoint, "aws_access_key_id": "x", "aws_secret_access_key": "x"}
        data = StreamingDataset(f"s3://{bucket}/litdata", shuffle=True, storage_options=options, transform=pair)
        return StreamingDataLoader(data, **count)
    if name == "webdataset":
        import webdataset

        urls = [f"{url}/shards/train-{k:06}.tar" for k in range(shards(url))]
        data = webdataset.WebDataset(urls, shardshuffle=100, empty_check=False).shuffle(1000)
        return webdataset.WebLoader(data.to_tuple("jpg", "cls").map_tuple(decode, int), **count)
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()  # of a turn that was ended
    os.environ["S3_ENDPOINT_URL"] = endpoint

    class Images(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            return pair(super().__getitem__(at))

    data = Images(remote=f"s3://{bucket}/mds", local=tempfile.mkdtemp(), shuffle=True, batch_size=BATCH)
    return DataLoader(data, **count)


def shards(url: str) -> int:
    """How many tars there are, by asking for them."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    for number in range(10**6):
        try:
            urlopen(Request(f"{url}/shards/train-{number:06}.tar", method="HEAD"))
        except HTTPError:
            return number
    return 10**6


def main() -> int:
    """Writes, or reads an epoch and prints a JSON object."""
    if sys.argv[1] == "--write":
        write(sys.argv[2], Path(sys.argv[3]))
        return 0
    began = time.perf_counter()
    batches = loader(*json.loads(sys.argv[2]))
    print(json.dumps(timed((len(found[1]) for found in batches), began)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

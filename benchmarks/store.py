"""A slow store on loopback, for tests and benchmarks: files over HTTP by ranges, and as much of S3 as clients ask for.

    python -m benchmarks.store FOLDER --delay 0.02 --rate 100e6 --faults 0.01     # prints its port
    with Served(Path("shards"), delay=0.02) as store: store.url

FOLDER is served as http://127.0.0.1:PORT/NAME/..., which is also the bucket NAME of an S3 endpoint. Every answer takes
`delay` seconds, and all together come at `rate` bytes a second. A fault is one of FAULTS: of those drawn at random
(`faults` is their fraction), or what `fault(path, number)` says of the number-th request for a path.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

FAULTS = ("500", "cut", "stall")
STALL = 30.0  # seconds without an answer
CHUNK = 2**18


class Store:
    """What is served, and how. asked: the (method, path, range) of every request."""

    def __init__(
        self,
        folder: Path,
        delay: float = 0.0,
        rate: float = 1e12,
        faults: float = 0.0,
        fault: Callable[[str, int], str | None] = lambda path, number: None,
    ) -> None:
        self.folder, self.delay, self.rate, self.faults, self.fault = folder, delay, rate, faults, fault
        self.asked, self.counts = list[tuple[str, str, str]](), Counter[str]()
        self.free, self.draw = 0.0, random.Random(0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one connection until it is closed."""
        try:
            while await self._answer(await reader.readuntil(b"\r\n\r\n"), writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        line, *rest = request.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in rest)}
        method, target = line.split()[:2]
        parts, span = urlsplit(target), fields.get("range", "")
        path = unquote(parts.path).strip("/")
        self.asked.append((method, path, span))
        self.counts[path] += 1
        fault = self.fault(path, self.counts[path])
        if self.faults and self.draw.random() < self.faults:
            fault = self.draw.choice(FAULTS)
        await asyncio.sleep(STALL if fault == "stall" else self.delay)
        inner = path.partition("/")[2]
        file = self.folder / inner
        if fault and fault.isdigit():
            return self._head(writer, int(fault), 0)
        if not inner and "list-type" in parts.query:
            text = self._listed(path, parse_qs(parts.query).get("prefix", [""])[0]).encode()
            self._head(writer, 200, len(text), {"Content-Type": "application/xml"})
            writer.write(text)
            return True
        if not inner or ".." in path or not file.is_file():
            return self._head(writer, 404, 0)
        return await self._file(writer, method, file, span, fault)

    async def _file(self, writer: asyncio.StreamWriter, method: str, file: Path, span: str, fault: str | None) -> bool:
        state = file.stat()
        size, first, last = state.st_size, 0, state.st_size - 1
        if span:
            begin, _, end = span.removeprefix("bytes=").partition("-")
            first = int(begin) if begin else size - int(end)
            last = min(int(end), size - 1) if end and begin else size - 1
        if first >= size and span:
            return self._head(writer, 416, 0, {"Content-Range": f"bytes */{size}"})
        length = last - first + 1 - (1 if fault == "short" else 0)
        more = {"ETag": f'"{state.st_mtime_ns:x}-{size:x}"', "Last-Modified": formatdate(state.st_mtime, usegmt=True)}
        more |= {"Accept-Ranges": "bytes"} | ({"Content-Range": f"bytes {first}-{last}/{size}"} if span else {})
        self._head(writer, 206 if span else 200, length, more)
        if method == "HEAD":
            return True
        with file.open("rb") as content:
            content.seek(first)
            left = length // 2 if fault == "cut" else length
            while left:
                piece = content.read(min(CHUNK, left))
                left -= len(piece)
                # All answers share the line; a sleep is coarse, and what it was late by is made up for.
                self.free = max(time.perf_counter() - 0.005, self.free) + len(piece) / self.rate
                if (wait := self.free - time.perf_counter()) > 0.001:
                    await asyncio.sleep(wait)
                writer.write(bytes(len(piece)) if fault == "zeros" else piece)
                await writer.drain()
        return fault != "cut"

    def _head(self, writer: asyncio.StreamWriter, status: int, length: int, more: dict[str, str] | None = None) -> bool:
        fields = {"Content-Length": str(length), **(more or {})}
        text = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"HTTP/1.1 {status} .\r\n{text}\r\n".encode())
        return True

    def _listed(self, bucket: str, prefix: str) -> str:
        files = sorted(file for file in self.folder.rglob("*") if file.is_file())
        keys = [(str(file.relative_to(self.folder)), file.stat()) for file in files]
        rows = [
            f"<Contents><Key>{escape(key)}</Key><Size>{state.st_size}</Size><ETag>&quot;{state.st_size}&quot;</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
            for key, state in keys
            if key.startswith(prefix)
        ]
        about = f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(rows)}</KeyCount>"
        return f"<ListBucketResult>{about}<IsTruncated>false</IsTruncated>{''.join(rows)}</ListBucketResult>"


class Served:
    """A store in a thread of this process."""

    def __init__(self, folder: Path, **how: float | Callable[[str, int], str | None]) -> None:
        self.store, self.loop = Store(folder, **how), asyncio.new_event_loop()  # type: ignore[arg-type]
        self.server = self.loop.run_until_complete(asyncio.start_server(self.store.serve, "127.0.0.1", 0))
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/{folder.name}"
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Served:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        async def end() -> None:
            self.server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()


async def _forever(store: Store) -> None:
    server = await asyncio.start_server(store.serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> int:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    for name, value in (("delay", 0.0), ("rate", 1e12), ("faults", 0.0)):
        parser.add_argument(f"--{name}", type=float, default=value)
    options = parser.parse_args()
    asyncio.run(_forever(Store(options.folder, options.delay, options.rate, options.faults)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

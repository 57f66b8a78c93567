"""Byte ranges of files in a store: S3, Google's and Azure's, HTTP, and whatever else fsspec knows.

    store = Store("s3://bucket/shards")
    store.look("train.index.npz")                         # (its length, its version), None where there is none
    store.begin("train-000003.tar", 512, 9000).result()   # bytes; ValueError after TRIES or SECONDS

A request that fails is repeated after a pause that doubles, plus chance, so that many processes do not come back at
once. Its time is what answers take of late, several times over, and doubles, too: one that stalls costs little, and a
store that is slow is waited for. obstore takes a fraction of the processor time of fsspec, but does not survive a fork:
processes that load use it, and what comes before them, such as the look at some headers, leaves it alone.
"""

import asyncio
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

TRIES, SECONDS = 6, 60.0  # of one request, all tries and pauses together
AT_ONCE = 64  # requests of one process: 64 images each 20 ms are more than its cores decode
PAUSE = 0.05  # seconds before the second try, doubled before each later one
FIRST, LEAST, TIMES = 8.0, 0.2, 4.0  # seconds for the first answer, for any, and multiple of what they take of late
SLOW = 2**20  # bytes a second for which a try waits in addition
RECENT = 0.05  # weight of the newest in the mean of what answers take
KNOWN = ("s3", "s3a", "gs", "az", "abfs", "abfss", "http", "https")  # to obstore; files and memory are fsspec's
DENIED = ("PermissionDeniedError", "UnauthenticatedError")  # of obstore
_RUST = list[int]()  # the process that used obstore first
_LOOPS = dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Semaphore]]()  # by process


class _Obstore:
    def __init__(self, url: str) -> None:
        import obstore

        options: Any = {"client_options": {"allow_http": True, "timeout": f"{SECONDS:g}s"}}
        options["retry_config"] = {"max_retries": 0}  # it would say nothing of its own tries
        self.module, self.store = obstore, obstore.store.from_url(url, **options)

    async def get(self, name: str, start: int, stop: int) -> bytes:
        return bytes(await self.module.get_range_async(self.store, name, start=start, end=stop))

    async def look(self, name: str) -> tuple[int, str]:
        found = await self.module.head_async(self.store, name)
        return found["size"], found["e_tag"] or ""


class _Fsspec:
    def __init__(self, url: str) -> None:
        from fsspec.asyn import AsyncFileSystem
        from fsspec.core import url_to_fs

        options: Any = {"loop": _loop()[0], "skip_instance_cache": True}
        self.files, self.folder = url_to_fs(url, **options)
        own = isinstance(self.files, AsyncFileSystem)
        self.cat: Any = self.files._cat_file if own else lambda *a, **k: asyncio.to_thread(self.files.cat_file, *a, **k)
        self.info: Any = self.files._info if own else lambda *a: asyncio.to_thread(self.files.info, *a)

    async def get(self, name: str, start: int, stop: int) -> bytes:
        return await self.cat(f"{self.folder}/{name}", start=start, end=stop)

    async def look(self, name: str) -> tuple[int, str]:
        found = await self.info(f"{self.folder}/{name}")
        if found["size"] is None:
            raise OSError("its length is not said")
        return found["size"], str(found.get("ETag") or found.get("etag") or found.get("mtime") or "")


_Client = _Obstore | _Fsspec  # which make one try each
_CLIENTS = dict[tuple[str, bool, int], _Client]()  # by URL, speed and process


class Store:
    """The files below a URL, by name. It may be pickled and used in forked processes and in threads: what is open
    belongs to a process. Its methods raise ValueError where what reads such URLs is not installed."""

    def __init__(self, url: str) -> None:
        self.url, self.usual = url.rstrip("/"), FIRST / TIMES

    def begin(
        self, name: str, start: int, stop: int, wrong: Callable[[bytes], str] = lambda content: "", fast: bool = False
    ) -> Future[bytes]:
        """The bytes start .. stop - 1 of a file, asked for without waiting. wrong: what is wrong with them, if anything
        is, which is no answer either. fast: whether this process loads. The future's ValueError names URL, offset,
        reason and attempt."""

        async def get(client: _Client) -> bytes:
            content = await client.get(name, start, stop)
            short = f"{len(content):,} bytes came instead of {stop - start:,}" if len(content) != stop - start else ""
            if reason := short or wrong(content):
                raise OSError(reason)
            return content

        return self._begin(get, f"{name} cannot be read at byte {start:,}", stop - start, fast)

    def look(self, name: str) -> tuple[int, str] | None:
        """(bytes, version or "") of a file; None where there is none or it may not be read: stores answer either."""
        try:
            return self._begin(lambda client: client.look(name), f"{name} cannot be looked at", 0, False).result()
        except _Refused:
            return None

    def _begin(self, ask: Callable[[_Client], Awaitable[T]], what: str, size: int, fast: bool) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(self._asked(ask, _client(self.url, fast), what, size), _loop()[0])

    async def _asked(self, ask: Callable[[_Client], Awaitable[T]], client: _Client, what: str, size: int) -> T:
        async with _loop()[1]:
            end, longer, tries, reason, refused = time.monotonic() + SECONDS, 1, 0, "", False
            while tries < TRIES and not refused and (left := end - time.monotonic()) > 0:
                tries, began = tries + 1, time.monotonic()
                limit = min(left, longer * (max(LEAST, TIMES * self.usual) + size / SLOW))
                try:
                    async with asyncio.timeout(limit):
                        found = await ask(client)
                    weight = 1 if self.usual == FIRST / TIMES else RECENT
                    self.usual += weight * (time.monotonic() - began - self.usual)
                    return found
                except TimeoutError:
                    reason, longer = f"no answer within {limit:.2g} s", 2 * longer
                except Exception as error:  # each client has its own
                    reason, refused = _reason(error)
                    await asyncio.sleep(0 if refused else min(left, PAUSE * 2**tries * random.uniform(0.5, 1)))
        kind = _Refused if refused else ValueError
        raise kind(f"{self.url}/{what} ({reason}; attempt {tries} of {TRIES}); check the store, or copy it again.")


class _Refused(ValueError):
    """Asking again would not help."""


def _reason(error: Exception) -> tuple[str, bool]:
    """What an error says, in short, and whether it would say so again."""
    # fsspec's FileNotFoundError stands for any that a look may meet, which is then its cause.
    words = " ".join(str(error.__cause__ or error).split("\n")[0].split())
    if isinstance(error, FileNotFoundError) and (not error.__cause__ or words[:3] in ("404", "410")):
        return "it is not there", True
    if isinstance(error, PermissionError) or type(error).__name__ in DENIED or words[:3] in ("401", "403"):
        return "access is denied", True
    return words.rpartition(" - ")[2][:120] or type(error).__name__, False


def _loop() -> tuple[asyncio.AbstractEventLoop, asyncio.Semaphore]:
    """The loop in which this process asks, in a thread of its own, and what limits the requests in it."""
    if (process := os.getpid()) not in _LOOPS:
        made = asyncio.new_event_loop()
        if _LOOPS.setdefault(process, (made, asyncio.Semaphore(AT_ONCE)))[0] is made:
            threading.Thread(target=made.run_forever, name="store", daemon=True).start()
        else:  # another thread was faster
            made.close()
    return _LOOPS[process]


def _client(url: str, fast: bool) -> _Client:
    """obstore where that may be, else fsspec; without `fast`, fsspec first."""
    process, scheme, why = os.getpid(), url.partition("://")[0], ""
    forked = bool(_RUST) and _RUST[0] != process
    if found := _CLIENTS.get((url, fast, process)):
        return found
    for kind in (_Obstore, _Fsspec) if fast else (_Fsspec, _Obstore):
        if kind is _Obstore and (forked or scheme not in KNOWN):
            continue
        try:
            found = kind(url)
        except ImportError:
            continue
        except Exception as error:  # a URL that it does not know, or has no bucket; credentials that are none
            why = f" ({_reason(error)[0]})"
            continue
        _RUST[:] = _RUST or [process] * (kind is _Obstore)
        return _CLIENTS.setdefault((url, fast, process), found)
    extra = "pip install 'vitrail[remote]'" + (f" and what fsspec has for {scheme}://" if scheme[:4] != "http" else "")
    where = f"{url} cannot be opened" + (" in worker processes, where obstore would hang" if forked else "")
    raise ValueError(f"{where}{why}; check it, or {extra}.")

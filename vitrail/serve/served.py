"""What the requests of one server share: its models' queues, its limits, and how a body becomes answers.

served = Served({"pets": Pipeline.load("runs/pets")}, Settings())
async with served.body(request) as content: ...        # Refused as soon as it is too large, or too late
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from python_multipart import create_form_parser
from python_multipart.exceptions import FormParserError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vitrail.config import dump
from vitrail.pipeline import Item, Pipeline
from vitrail.serve.limits import Limits, Refused, check, whole
from vitrail.serve.metrics import Metrics
from vitrail.serve.queue import Queue

# (pipeline, image, its name, method) -> maps for JSON; what a model that has none says is a ValueError.
Explain = Callable[[Pipeline, bytes, str, str], Any]


@dataclass(frozen=True)
class Settings:
    """batch, wait: as in Queue. token: what `Authorization: Bearer` must have, where it is not "". page: of GET /."""

    limits: Limits = field(default_factory=Limits)
    batch: int = 16
    wait: float = 0.002
    token: str = ""
    page: str = ""
    explain: Explain | None = None


class Served:
    """What the requests of one application share."""

    def __init__(self, pipelines: Mapping[str, Pipeline], settings: Settings) -> None:
        self.settings, self.limits, self.metrics = settings, settings.limits, Metrics()
        self.queues = {
            name: Queue(pipeline, settings.batch, settings.wait, self.limits.waiting, self._batch)
            for name, pipeline in pipelines.items()
        }
        self.metrics.gauges["waiting_images"] = lambda: sum(queue.under_way for queue in self.queues.values())
        self.threads: ThreadPoolExecutor  # while the application runs
        self.ready, self.held = False, 0

    def _batch(self, size: int) -> None:
        self.metrics.observe("batch_images", float(size))

    def queue(self, name: str | None) -> Queue:
        if name is None:
            return next(iter(self.queues.values()))
        if name not in self.queues:
            raise Refused(404, f"there is no model {name[:80]!r}, but {', '.join(self.queues)}.")
        return self.queues[name]

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, counted among what all requests hold while it lasts. Refused as soon as it is too large."""
        limits, parts, size = self.limits, list[bytes](), 0
        length = request.headers.get("content-length", "0")
        too_large = Refused(413, f"the request has more than {limits.bytes:,} bytes.", connection="close")
        if length.isdigit() and int(length) > limits.bytes:
            raise too_large
        try:
            try:
                async with asyncio.timeout(limits.reading):
                    async for part in request.stream():
                        parts.append(part)
                        size, self.held = size + len(part), self.held + len(part)
                        if size > limits.bytes:
                            raise too_large
                        if self.held > limits.held:
                            raise Refused(503, "the server holds too many requests; try again.", retry_after="1")
            except TimeoutError:
                raise Refused(408, f"the request took more than {limits.reading:g} s.", connection="close") from None
            yield b"".join(parts)
        finally:
            self.held -= size

    def images(self, request: Request, content: bytes) -> list[tuple[str, bytes]]:
        """(name, bytes) of each image of a request."""
        kind = request.headers.get("content-type", "")
        if not kind.startswith("multipart/form-data"):
            return [("the image", content)]
        found = list[tuple[str, bytes]]()

        def file(part: Any) -> None:
            if len(found) == self.limits.images:
                raise Refused(413, f"the form has more than {self.limits.images} files.")
            name = (part.file_name or b"").decode("utf-8", "replace")
            found.append((name[:200] or "the image", part.file_object.getvalue()))

        try:  # all of it is in memory; nothing is written to the disk
            how = {"MAX_MEMORY_FILE_SIZE": len(content) + 1}
            parser = create_form_parser({"Content-Type": kind.encode("latin-1")}, lambda part: None, file, config=how)
            parser.write(content)
            parser.finalize()
        except (FormParserError, ValueError, KeyError) as error:
            raise Refused(400, f"the form cannot be read ({str(error)[:80]}).") from None
        if not found:
            raise Refused(400, "the form has no file.")
        return found

    async def answers(self, queue: Queue, images: list[tuple[str, bytes]], top: int) -> list[Any]:
        """Of each image its answer, or what is wrong with it: a Refused, or a ValueError of the pipeline's."""
        loop = asyncio.get_running_loop()
        ready = [loop.run_in_executor(self.threads, self.decoded, queue.pipeline, *image) for image in images]
        found: list[Any] = await asyncio.gather(*ready, return_exceptions=True)
        items = [one for one in found if isinstance(one, Item)]
        computed = iter(await queue.answers(items, {"top": top}))
        return [next(computed) if isinstance(one, Item) else one for one in found]

    def decoded(self, pipeline: Pipeline, name: str, content: bytes) -> Item:
        """In a thread."""
        native = pipeline.preprocessing.resize == "native"
        check(content, name, min(self.limits.pixels, self.limits.native) if native else self.limits.pixels)
        return pipeline.prepare((name, content))

    async def predict(self, request: Request) -> Response:
        query = request.query_params
        queue, top, method = self.queue(query.get("model")), whole(query.get("top", "5")), query.get("explain")
        async with self.body(request) as content, asyncio.timeout(self.limits.seconds):
            images = await asyncio.get_running_loop().run_in_executor(self.threads, self.images, request, content)
            with queue.room(len(images)):
                found = await self.answers(queue, images, top)
                answers = [_said(name, one) for (name, _), one in zip(images, found, strict=True)]
                if method and self.settings.explain is None:
                    raise Refused(501, "this server does not explain.")
                if method:
                    await self._explained(queue.pipeline, images, answers, method)
        failed = [one for one in found if isinstance(one, Exception)]
        self.metrics.count("images", len(found) - len(failed), model=_name(self, queue))
        status = 200 if len(failed) < len(found) else failed[0].status if isinstance(failed[0], Refused) else 400
        return JSONResponse(answers, status)

    async def _explained(
        self, pipeline: Pipeline, images: list[tuple[str, bytes]], answers: list[dict[str, Any]], method: str
    ) -> None:
        """Puts maps beside the answers."""
        loop, explain = asyncio.get_running_loop(), self.settings.explain
        assert explain is not None
        for (name, content), answer in zip(images, answers, strict=True):
            if "predictions" in answer:
                try:
                    found = await loop.run_in_executor(self.threads, explain, pipeline, content, name, method)
                except ValueError as error:
                    raise Refused(400, str(error)) from None
                answer["maps"] = found

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def is_ready(self, request: Request) -> Response:
        if name := request.path_params.get("name"):
            self.queue(name)
        return JSONResponse({"ready": self.ready}, 200 if self.ready else 503)


def _said(name: str, answer: Any) -> dict[str, Any]:
    """As `vitrail predict --json` has it."""
    if isinstance(answer, Refused | ValueError):
        return {"file": name, "error": str(answer)}
    if isinstance(answer, BaseException):
        raise answer
    return {"file": name, "predictions": dump(answer)}


def _name(served: Served, queue: Queue) -> str:
    return next(name for name, other in served.queues.items() if other is queue)

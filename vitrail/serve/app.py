"""The server as an ASGI application (Starlette): any server of such runs it, uvicorn here, Ray on a cluster.

    app = application({"pets": Pipeline.load("runs/pets")}, Settings())

    POST /predict[?model=NAME&top=5&explain=gradient]     an image as the body, or several as multipart/form-data
    GET  /                    the page                GET /health/live, /health/ready        GET /metrics
    GET  /v2, /v2/health/live, /v2/health/ready, /v2/models/NAME, /v2/models/NAME/ready     POST .../NAME/infer

/predict answers as `vitrail predict --json`: a list of {file, predictions} or {file, error}. The paths under /v2 are
the Open Inference Protocol's, version 2. Nothing is fetched for a request, and no answer tells a path or a traceback.
"""

import hmac
import logging
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitrail import __version__
from vitrail.pipeline import WORKERS, Pipeline
from vitrail.serve.limits import Refused
from vitrail.serve.protocol import Protocol
from vitrail.serve.queue import Full
from vitrail.serve.served import Served, Settings

OPEN = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")  # without a token
SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-store"}


def application(pipelines: Mapping[str, Pipeline], settings: Settings) -> Starlette:
    """The application; `app.state.served.ready` is False before it begins and once it is to end. The first model is
    that of requests which name none."""
    served = Served(pipelines, settings)
    protocol = Protocol(served)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            served.threads = stack.enter_context(ThreadPoolExecutor(WORKERS))
            for queue in served.queues.values():
                await stack.enter_async_context(queue.working())
            served.ready = True
            yield
            served.ready = False

    async def server(request: Request) -> Response:
        return JSONResponse({"name": "vitrail", "version": __version__, "extensions": [], "models": [*served.queues]})

    async def page(request: Request) -> Response:
        return HTMLResponse(settings.page)

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(served.metrics.text(), media_type="text/plain; version=0.0.4")

    routes = [
        Route("/predict", served.predict, methods=["POST"]),
        Route("/health/live", served.live),
        Route("/health/ready", served.is_ready),
        Route("/metrics", metrics),
        Route("/v2", server),
        Route("/v2/health/live", served.live),
        Route("/v2/health/ready", served.is_ready),
        Route("/v2/models/{name}", protocol.model),
        Route("/v2/models/{name}/ready", served.is_ready),
        Route("/v2/models/{name}/infer", protocol.infer, methods=["POST"]),
        *([Route("/", page)] if settings.page else []),
    ]

    async def other(request: Request, error: Exception) -> Response:
        raise error  # to Guard, which answers all

    guard = [Middleware(Guard, served)]
    app = Starlette(routes=routes, lifespan=lifespan, middleware=guard, exception_handlers={HTTPException: other})
    app.state.served = served
    return app


class Guard:
    """Around every request: the token, what is counted, and an answer to whatever is raised."""

    def __init__(self, app: ASGIApp, served: Served) -> None:
        self.app, self.served = app, served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, served, status = time.perf_counter(), self.served, 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                for name, value in SAFE.items():
                    headers.setdefault(name, value)
                if not served.ready:  # clients that keep connections open look for another server
                    headers["connection"] = "close"
            await send(message)

        try:
            self._token(scope)
            await self.app(scope, receive, answer)
        except ClientDisconnect:
            status = 499  # nginx's word for it; nobody reads an answer
        except Exception as error:
            refusal = _refusal(error)
            if not status:
                await JSONResponse({"error": refusal.sentence}, refusal.status, refusal.headers)(scope, receive, answer)
        finally:
            path = getattr(scope.get("route"), "path", "other") if status != 404 else "other"
            served.metrics.count("requests", path=path, status=str(status))
            served.metrics.observe("request_seconds", time.perf_counter() - began)

    def _token(self, scope: Scope) -> None:
        token = self.served.settings.token
        if token and scope["path"] not in OPEN:
            given = Headers(scope=scope).get("authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {token}".encode()):
                raise Refused(401, "a token is needed: Authorization: Bearer TOKEN.", www_authenticate="Bearer")


def _refusal(error: Exception) -> Refused:
    """What is said of what was raised."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Full):
        return Refused(503, "too many images wait; try again.", retry_after="1")
    if isinstance(error, TimeoutError):
        return Refused(504, "the answer took too long.")
    if isinstance(error, HTTPException):
        return Refused(error.status_code, error.detail, **(error.headers or {}))
    logging.getLogger("vitrail.serve").error("a request failed", exc_info=error)
    return Refused(500, "the server failed; its log says why.")

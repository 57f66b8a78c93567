"""Runs the application by uvicorn, and ends it without losing a request.

run(app, "127.0.0.1", 8000, drain=2.0)
"""

import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from vitrail.serve.served import Served

CONNECTIONS = 1024  # more are answered with 503


class Server(uvicorn.Server):
    """At the first signal it is no longer ready, and says so in each answer, but answers for `drain` more seconds,
    until a load balancer has noticed; then it answers what it has begun, and ends. A second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, served: Served, drain: float, begun: Callable[[], object]) -> None:
        super().__init__(config)
        self.served, self.drain, self.begun = served, drain, begun
        self.end: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.begun()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.end is None and sig in (signal.SIGTERM, signal.SIGINT):
            self.served.ready = False
            self.end = time.monotonic() + (self.drain if sig == signal.SIGTERM else 0)
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self.end is not None and time.monotonic() >= self.end:
            self.should_exit = True
        return await super().on_tick(counter)


def run(app: Starlette, host: str, port: int, drain: float, grace: float, say: Callable[[str], object]) -> None:
    """Until a signal. grace: seconds that begun requests have at the end. OSError where the port is taken."""
    bound = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=int(grace),
        lifespan="on",
    )
    with bound:
        shown = f"[{host}]" if ":" in host else host
        where = f"http://{shown}:{bound.getsockname()[1]}"
        Server(config, app.state.served, drain, lambda: say(f"listening on {where}")).run(sockets=[bound])

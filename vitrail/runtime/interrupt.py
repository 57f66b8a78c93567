"""Stopping between two steps: Ctrl-C, SIGTERM and a terminal that closes set an event that the loop looks at.

with stoppable() as stop:
    for step in steps:
        ...
        if stop.is_set():
            raise Interrupted("stopped after ...")
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vitrail.data.stream import STOPS


class Interrupted(Exception):
    """The run was asked to stop, and its state is on the disk."""


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that STOPS set, so that a step is never cut in two; a second Ctrl-C stops at once. Under nohup a
    terminal may close."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    asks = (signal.SIGINT, signal.SIGTERM)  # which a script's `&` has ignored, but `kill` means
    heard = [number for number in STOPS if number in asks or signal.getsignal(number) is not signal.SIG_IGN]
    earlier = {number: signal.signal(number, ask) for number in heard}
    try:
        yield event
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)

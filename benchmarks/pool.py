"""Starting processes, asking them, and ending them, whatever happens meanwhile.

    program(["-m", "vitrail", "--help"], timeout=60)                # {"seconds": 0.19}
    with Worker("timm", environment(KEEP_FREED)) as worker:
        worker.ask("build", 600, library="timm", case="Ti/16@224", ...)
        worker.ask("steps", 60, count=3)["seconds"]

A process that fails, dies or exceeds its time raises WorkerError with the reason, and never hangs the caller.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from benchmarks.machine import ROOT

# Freed memory stays mapped: otherwise each step faults its pages in anew, by an amount that differs from one process
# to the next and is worth up to 8 % of the time.
KEEP_FREED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
# For peak memory: glibc's own starting threshold, held there. By default it rises with what was freed before,
# and then the peak depends on the history of the process.
PINNED = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10), "MALLOC_TRIM_THRESHOLD_": str(128 << 10)}
PATIENCE = 10  # seconds for a process to end those that it started
ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT  # has a process? It keeps its number


class WorkerError(RuntimeError):
    """A process could not do what it was asked to; the message says why."""


def environment(allocator: dict[str, str], cache: Path | None = None) -> dict[str, str]:
    """This process's environment with one allocator setting for all; `cache` is where compiled code is kept."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONUNBUFFERED": "1"}
    where = {"TORCHINDUCTOR_CACHE_DIR": str(cache)} if cache else {}
    return kept | offline | allocator | where


def finish(
    command: Sequence[str],
    timeout: float,
    variables: Mapping[str, str] | None = None,
    folder: Path = ROOT,
    merged: bool = False,
) -> str:
    """What a command prints. merged: standard error, too. WorkerError if it fails or exceeds the timeout (seconds)."""
    # A session of its own: Ctrl-C reaches only this process, which then ends the other with all that it started.
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT if merged else subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, env=variables, text=True, start_new_session=True, **pipes) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise WorkerError(f"no end within {timeout:g} s") from error
        finally:
            end(process)
    if process.returncode:
        raise WorkerError(f"status {process.returncode}\n{(errors or out)[-2000:].rstrip()}")
    return out


def program(
    words: Sequence[str], timeout: float, variables: Mapping[str, str] | None = None, folder: Path = ROOT
) -> dict[str, Any]:
    """{"seconds": wall time} of a fresh interpreter, and the JSON object in the last line that it prints, if any."""
    start = time.perf_counter()
    lines = finish([sys.executable, *words], timeout, variables, folder).splitlines()
    found = {"seconds": time.perf_counter() - start}
    return found | (json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {})


def end(process: subprocess.Popen[Any]) -> None:
    """Ends a process that leads a session, and every process that it started: torchrun, whose processes lead sessions
    of their own, ends these if it is asked to end and given some seconds."""
    if process.returncode is None:  # once waited for, its number may belong to somebody else
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            until = time.monotonic() + PATIENCE
            while not os.waitid(os.P_PID, process.pid, ENDED) and time.monotonic() < until:
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Worker:
    """One `python -m benchmarks.worker`, or another module that answers as it does, alive between the questions."""

    def __init__(self, label: str, variables: dict[str, str], module: str = "benchmarks.worker") -> None:
        self.label = label
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the process is
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
        )

    def ask(self, do: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """Sends one request and returns its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            end(self.process)

        timer = threading.Timer(timeout, give_up)
        timer.start()
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise WorkerError(self.death(do, timeout if late.is_set() else None))
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(f"{self.label}, {do}: {reply['error']}\n{reply['trace']}")
        return reply

    def death(self, do: str, timeout: float | None) -> str:
        """Why the process gave no answer, with the end of what it printed."""
        end(self.process)
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 2000))
        tail = self.log.read().decode(errors="replace").strip()
        reason = (
            f"no answer within {timeout:g} s" if timeout else f"the process ended with status {self.process.returncode}"
        )
        return f"{self.label}, {do}: {reason}\n{tail}".rstrip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        end(self.process)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.log.close()

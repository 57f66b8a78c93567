"""Progress of long work on standard error: a bar on a terminal, otherwise a line now and then; and lists in sentences.

for image in track(images, len(images), "packing"): ...
few(["a", "b", "c"], 2)      # "a, b and 1 more"
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")
LIVE = list["Progress"]()  # a bar that stays on the screen, where no other may be drawn meanwhile
QUIET_SECONDS = 10.0  # between progress lines where standard error is not a terminal


def bar(what: str, console: "Console") -> "Progress":
    """A bar for tasks with a `text`; it is seen only on a terminal."""
    from rich import progress as rich  # not before there is something to show: `vitrail --help` need not wait for it

    columns = (rich.TextColumn(what), rich.BarColumn(24), rich.MofNCompleteColumn(), "{task.fields[text]}")
    times = (rich.TimeElapsedColumn(), "left", rich.TimeRemainingColumn())
    hidden = not console.is_terminal or bool(LIVE)
    return rich.Progress(*columns, *times, console=console, disable=hidden, redirect_stdout=False)


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yields the items, with a bar on standard error where that is a terminal, elsewhere a line now and then."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    started = spoke = time.perf_counter()
    with bar(what, console) as shown:
        task = shown.add_task(what, total=total, text="")
        for done, item in enumerate(items, 1):
            yield item
            rate = done / max(time.perf_counter() - started, 1e-9)
            speed = f"{rate:.0f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
            shown.update(task, completed=done, text=speed)
            if not console.is_terminal and time.perf_counter() - spoke > QUIET_SECONDS:
                spoke = time.perf_counter()
                say(f"{what} {done}/{total}  {speed}")


# Of several processes of one run, the first one speaks (runtime/distributed.py).
SILENT = int(os.environ.get("RANK", "0")) > 0 and int(os.environ.get("WORLD_SIZE", "1")) > 1


def say(text: str, always: bool = False) -> None:
    """Prints a line on standard error; standard output is for results. always: on whichever process."""
    if always or not SILENT:
        print(f"{text}\n", end="", file=sys.stderr, flush=True)


def few(names: Iterable[object], count: int = 5) -> str:
    """The first `count` names and how many more there are, for a sentence; "none" without any."""
    found = list(map(str, names))
    more = f" and {len(found) - count:,} more" if len(found) > count else ""
    return (", ".join(found[:count]) or "none") + more

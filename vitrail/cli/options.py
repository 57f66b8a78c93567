"""What several commands share: how options and texts are shown, and where results go.

json: Flag = False
out: Folder = "runs/demo"
"""

import textwrap
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

Flag = Annotated[bool, arg(help_behavior_hint="")]  # without "(default: False)"
Folder = Annotated[str, arg(metavar="FOLDER")]


def out_folder(name: str, free: Callable[[Path], bool]) -> Path:
    """runs/NAME, or the first of runs/NAME-2, -3, ... that is free."""
    folders = (Path("runs", name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(filter(free, folders))


def paragraphs(text: str, width: int) -> str:
    """A docstring in lines of at most `width` columns; what it says of cost and score begins a line of its own."""
    parts = text.replace("\nExpected:", "\n\nExpected:").split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(part.split()), width, break_on_hyphens=False) for part in parts)

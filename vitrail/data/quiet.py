"""Without the warnings that are answered here, in threads, too.

with quiet(): ...

`warnings.catch_warnings` changes the filters of the whole process: where two threads overlap, each restores what the
other had set, and a filter may stay for good. So the first thread sets them for all, and the last one takes them back.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _Overlap:
    """How many threads are quiet at this moment, and the filters as the first of them found them."""

    lock = threading.Lock()
    threads = 0
    filters = warnings.catch_warnings()


@contextmanager
def quiet() -> Iterator[None]:
    """Ignores what Pillow says of images, torch of more processes than cores, and of int8 weights that it shall have in
    another form, Python of processes that begin as copies of one with threads, and matplotlib of missing letters."""
    with _Overlap.lock:
        if _Overlap.threads == 0:
            _Overlap.filters = warnings.catch_warnings()
            _Overlap.filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
            ours = "This DataLoader will create", r"torch\.quantize_per", "This process .* is multi-threaded"
            for words in (*ours, r"Glyph \d+ .* missing"):
                warnings.filterwarnings("ignore", words)
        _Overlap.threads += 1
    try:
        yield
    finally:
        with _Overlap.lock:
            _Overlap.threads -= 1
            if _Overlap.threads == 0:
                _Overlap.filters.__exit__(None, None, None)

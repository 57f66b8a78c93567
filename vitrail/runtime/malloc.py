"""Freed memory stays with the process, so that the next step or batch need not fault its pages in anew.

    keep_freed()        # before the first large allocation: the command line does it, the library leaves it alone

glibc gives large blocks back to the system as soon as they are freed. Every forward pass then asks for the same
gigabytes again, page by page, each filled with zeros first.
"""

import ctypes
import os
import sys

# The numbers of glibc's malloc.h, and what they are set to. The threshold is the largest that glibc takes: what is
# larger goes back to the system as before, so that one great array does not stay for ever.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
SETTINGS = {M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 1 << 30, M_TOP_PAD: 64 << 20}


def keep_freed() -> bool:
    """Returns whether it was done: it is not where there is no glibc, or the user has settings of his own."""
    chosen = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    done = [mallopt(number, value) for number, value in SETTINGS.items()]  # each of them, though one may fail
    return all(done)

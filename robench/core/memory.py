"""Memory that nobody uses, given back to the system."""

import ctypes
from functools import cache
from typing import Any


def give_back() -> None:
    """Return free pages to the system, where the C library is glibc.

    glibc keeps what torch frees and, since torch's blocks are aligned, mostly does not find it again: the process
    grows with every batch of large images, although it holds none of them.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except OSError:
        return None

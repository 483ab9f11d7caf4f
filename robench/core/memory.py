"""Returning unused memory to the system."""

import ctypes
from functools import cache
from typing import Any


def give_back() -> None:
    """Return free pages to the system if the C library is glibc.

    glibc keeps the memory that torch frees, and seldom reuses it because torch's blocks are aligned. Without this call
    the process grows with every batch of large images, although it keeps none of them.
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

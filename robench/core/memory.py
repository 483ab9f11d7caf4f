"""Keeping memory between network calls, and returning it to the system.

Only glibc is adjusted; with other C libraries nothing is done.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

# Parameters of mallopt: bytes of free memory at the end of the heap above which it is returned to the system, and
# bytes from which a block gets a mapping of its own. glibc accepts at most 32 MB for the latter.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK = 1 << 25
# glibc chooses twice the size of the largest block.
_USUAL, _NEVER = 2 * _LARGEST_BLOCK, (1 << 31) - 1
_VARIABLES = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}


def give_back() -> None:
    """Return free pages to the system.

    glibc keeps the memory that torch frees, and seldom reuses it because torch's blocks are aligned. Without this call
    the process grows with every batch of large images, although it keeps none of them.
    """
    if trim := _function("malloc_trim"):
        trim(0)


@contextmanager
def keeping_pages() -> Iterator[None]:
    """Keep freed memory inside the block and return it at its end.

    A step of an attack allocates and frees the same blocks as the step before. If they were returned to the system in
    between, clearing new pages would take longer than the arithmetic. glibc's environment variables take precedence.
    """
    adjust = _function("mallopt")
    if adjust is None or not _VARIABLES.isdisjoint(os.environ):
        yield
        return
    adjust(_MMAP_THRESHOLD, _LARGEST_BLOCK)
    adjust(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        adjust(_TRIM_THRESHOLD, _USUAL)
        give_back()


@cache
def _function(name: str) -> Callable[..., Any] | None:
    """A function of the C library; None if it is missing."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return getattr(library, name, None) if hasattr(library, "gnu_get_libc_version") else None

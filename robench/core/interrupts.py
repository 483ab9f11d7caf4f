"""Handling of Ctrl-C during imports, when there is no work to save and a half-imported module could raise any error."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


@contextmanager
def end_at_once() -> Iterator[None]:
    """Inside the block, an interrupt ends the process with one line; an ignored interrupt stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def importing(frame: FrameType | None) -> bool:
    """Whether `frame` runs during the import of a module."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def end(number: int, frame: FrameType | None) -> NoReturn:
    """Signal handler that ends the process with one line."""
    # An exception would be swallowed or replaced by extension modules during their initialization.
    with suppress(OSError):
        os.write(2, b"robench: interrupted\n")
    os._exit(INTERRUPTED)

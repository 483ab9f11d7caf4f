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
    before = signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    # An exception would be swallowed or replaced by extension modules during their initialisation.
    with suppress(OSError):
        os.write(2, b"robench: interrupted\n")
    os._exit(INTERRUPTED)

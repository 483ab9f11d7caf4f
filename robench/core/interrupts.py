"""Ctrl-C while modules load: nothing is lost yet, and no half-imported module may turn it into another error."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130


@contextmanager
def end_at_once() -> Iterator[None]:
    """End the process at an interrupt, in one line, until the block ends; an interrupt that is ignored stays so."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    # Not an exception: extension modules that are being initialised would turn it into another, or swallow it.
    with suppress(OSError):
        os.write(2, b"robench: interrupted\n")
    os._exit(INTERRUPTED)

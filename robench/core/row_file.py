"""Rows of one shape and type that lie in an open file and are read when they are asked for."""

import os
import threading
import weakref
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

# One position serves every reader of a file where the system cannot read at a given place (Windows).
_POSITION = threading.Lock()


def shared(file: IO[bytes]) -> IO[bytes]:
    """The same open file, closed when nothing refers to it any more; `file` itself is closed."""
    with file:
        descriptor = os.dup(file.fileno())
    again = open(descriptor, file.mode, buffering=0, closefd=False)  # noqa: SIM115
    weakref.finalize(again, os.close, descriptor)
    return again


class RowFile:
    """Rows (N, ...) in a binary file.

    Args:
        file: see `shared`.
        shape: of all rows.
        kind: the type of their numbers, little-endian.
        start: the byte at which the first row begins.
    """

    def __init__(self, file: IO[bytes], shape: tuple[int, ...], kind: Any, start: int = 0):
        self.shape, self.kind = shape, np.dtype(kind)
        self._file, self._start = file, start
        self._row = int(np.prod(shape[1:])) * self.kind.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Some of the rows, (K, ...).

        Raises:
            EOFError: when the file ends before they do.
            OSError: when it cannot be read.
        """
        content = np.empty((len(rows), *self.shape[1:]), self.kind)
        if not content.size:
            return content
        if list(rows) == list(range(rows[0], rows[0] + len(rows))):
            self._read(content, rows[0])
        else:
            for part, row in zip(content, rows, strict=True):
                self._read(part, row)
        return content

    def write(self, row: int, content: np.ndarray) -> None:
        """Set the rows from `row` on; `content` is contiguous and of this file's type.

        Raises:
            OSError: when it cannot be written.
        """
        at, left = self._start + row * self._row, memoryview(content.data).cast("B")
        # The system writes at most 2 GB at a time.
        while left:
            written = self._write(left, at)
            left, at = left[written:], at + written

    def _read(self, into: np.ndarray, row: int) -> None:
        # Read, not mapped: pages that are mapped count as the process's own memory, and a file that somebody
        # shortens meanwhile would kill it.
        at, left = self._start + row * self._row, memoryview(into.data).cast("B")
        while left:
            count = _read_at(self._file, left, at)
            if not count:
                raise EOFError
            left, at = left[count:], at + count

    def _write(self, content: memoryview, at: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._file.fileno(), content, at)
        with _POSITION:
            self._file.seek(at)
            return self._file.write(content)


def _read_at(file: IO[bytes], into: memoryview, at: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [into], at)
    with _POSITION:
        file.seek(at)
        content = file.read(min(len(into), 1 << 24))
    into[: len(content)] = content
    return len(content)

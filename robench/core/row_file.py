"""Arrays of equal shape and dtype stored in an open file and read on demand."""

import os
import threading
import weakref
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

# Systems without positional reads (Windows) share one file position among all readers.
_POSITION = threading.Lock()


def shared(file: IO[bytes]) -> IO[bytes]:
    """Duplicate an open file; the copy is closed when it is garbage-collected. `file` itself is closed."""
    with file:
        descriptor = os.dup(file.fileno())
    again = open(descriptor, file.mode, buffering=0, closefd=False)  # noqa: SIM115
    weakref.finalize(again, os.close, descriptor)
    return again


class RowFile:
    """Rows (N, ...) in a binary file.

    Args:
        file: an open file, see `shared`.
        shape: shape of the whole array, (N, ...).
        kind: dtype of the numbers, little-endian.
        start: byte offset of the first row.
    """

    def __init__(self, file: IO[bytes], shape: tuple[int, ...], kind: Any, start: int = 0):
        self.shape, self.kind = shape, np.dtype(kind)
        self._file, self._start = file, start
        self._row = int(np.prod(shape[1:])) * self.kind.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Read the given rows, (K, ...).

        Raises:
            EOFError: if the file ends before the rows do.
            OSError: if the file cannot be read.
        """
        content = np.empty((len(rows), *self.shape[1:]), self.kind)
        if not content.size:
            return content
        run = range(rows[0], rows[0] + len(rows))
        if rows == run or list(rows) == list(run):
            self._read(content, rows[0])
        else:
            for part, row in zip(content, rows, strict=True):
                self._read(part, row)
        return content

    def write(self, row: int, content: np.ndarray) -> None:
        """Write rows starting at `row`; `content` must be contiguous and have the dtype of the file.

        Raises:
            OSError: if the file cannot be written.
        """
        at, left = self._start + row * self._row, memoryview(content.data).cast("B")
        # The system writes at most 2 GB at a time.
        while left:
            written = self._write(left, at)
            left, at = left[written:], at + written

    def _read(self, into: np.ndarray, row: int) -> None:
        # Not memory-mapped: mapped pages count as memory of the process, and it would crash if the file were truncated
        # by another process.
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

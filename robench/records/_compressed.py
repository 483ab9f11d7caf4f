"""Rows of integers, each compressed with zlib. Linf perturbations take about a sixth of their size."""

import math
import zlib
from collections.abc import Sequence

import numpy as np

from robench.core.row_file import RowFile

# Largest number of integers in a row: what is decompressed must fit into memory, whatever a file claims.
LARGEST = 1 << 24
_DAMAGED = "damaged or truncated"


def compress(row: np.ndarray) -> bytes:
    """The bytes of one row of integers of one or two bytes."""
    # Perturbations hardly repeat but for runs of one value: the search for longer repetitions costs four times the time
    # and makes most of them larger.
    stream = zlib.compressobj(strategy=zlib.Z_RLE)
    return stream.compress(row.astype(row.dtype.newbyteorder("<")).tobytes()) + stream.flush()


class CompressedRows:
    """Rows (N, ...) of integers, read on demand as from a `RowFile`.

    Args:
        content: bytes (B,), the compressed rows one after the other.
        ends: (N,) int64, the end of each row in `content`.
        shape: shape of the whole array, (N, ...), with at most `LARGEST` integers a row.

    Raises:
        ValueError: if `ends` does not divide `content` into rows.
    """

    def __init__(self, content: RowFile, ends: np.ndarray, shape: tuple[int, ...]):
        self.shape = shape
        self._content, self._bounds = content, np.concatenate([[0], ends])
        # Compared, because differences of the largest numbers overflow.
        if self._bounds[-1] != len(content) or (self._bounds[1:] <= self._bounds[:-1]).any():
            raise ValueError(_DAMAGED)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Read the given rows, (K, ...) int16.

        Raises:
            ValueError: if a row is damaged or of another size.
            EOFError: if the file ends before the rows do.
            OSError: if the file cannot be read.
        """
        content = np.empty((len(rows), *self.shape[1:]), np.int16)
        for part, row in zip(content, rows, strict=True):
            part[...] = self._row(row).reshape(part.shape)
        return content

    def _row(self, row: int) -> np.ndarray:
        size = math.prod(self.shape[1:])
        packed = self._content.read(range(int(self._bounds[row]), int(self._bounds[row + 1])))
        unpacking = zlib.decompressobj()
        try:
            content = unpacking.decompress(packed.tobytes(), 2 * size + 1)
        except zlib.error:
            raise ValueError(_DAMAGED) from None
        if not unpacking.eof or unpacking.unused_data or len(content) not in (size, 2 * size):
            raise ValueError(_DAMAGED)
        return np.frombuffer(content, "i1" if len(content) == size else "<i2")

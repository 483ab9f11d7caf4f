"""Images that are not kept in memory: pixels in a temporary file, and images with some replaced."""

import errno
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from robench.core.errors import ResourceError
from robench.core.memory import give_back
from robench.core.row_file import RowFile, shared

# Free memory is returned to the system after this many bytes of images.
_OFTEN = 1 << 26
_FULL = (errno.ENOSPC, errno.EDQUOT)


class LazyImages:
    """Images (N, C, H, W), float32 in [0, 1], indexed like a tensor and read on access.

    A subclass implements `_read`.

    Args:
        shape: (N, C, H, W).
    """

    dtype = torch.float32

    def __init__(self, shape: tuple[int, ...]):
        self.shape = torch.Size(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        """Index like a tensor: by a row, a slice, a list or tensor of rows or a mask, optionally followed by indices of
        further dimensions."""
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        rows = self._rows_of(first)
        x = self._read(rows.flatten().tolist()).view(*rows.shape, *self.shape[1:])
        return x[(slice(None),) * rows.dim() + rest] if rest else x

    def _rows_of(self, index: Any) -> Tensor:
        """The rows that an index of the first dimension selects, int64.

        The usual indices do not list all rows, of which a set may have millions.
        """
        if isinstance(index, slice) and (index.step is None or index.step > 0):
            start, stop, step = index.indices(len(self))
            return torch.arange(start, max(start, stop), step)
        if isinstance(index, int | list | Tensor) and not isinstance(index, bool):
            rows, n = torch.as_tensor(index), len(self)
            if rows.dtype == torch.int64 and rows.numel():
                if int(rows.min()) < -n or int(rows.max()) >= n:
                    raise IndexError(f"index out of range for {n} images")
                return torch.where(rows < 0, rows + n, rows)
        return torch.arange(len(self))[index]

    def split(self, size: int) -> Iterator[Tensor]:
        """All images, `size` at a time."""
        often = max(1, _OFTEN // max(1, self.dtype.itemsize * math.prod(self.shape[1:])))
        for start in range(0, len(self), size):
            yield self[start : start + size]
            if (start + size) // often > start // often:
                give_back()

    def to(self, device: torch.device | str) -> Tensor:
        """All images at once, in memory."""
        return self[:].to(device)

    def first(self, n: int) -> "Tensor | LazyImages":
        """The first `n` images."""
        return self[:n]

    def identity(self) -> bytes:
        """Bytes that distinguish these images from others without reading them; empty if only the pixels do."""
        return b""

    def _read(self, rows: list[int]) -> Tensor:
        raise NotImplementedError


class Held(LazyImages):
    """Images in memory with the interface of `LazyImages`.

    Args:
        x: (N, C, H, W) float32.
    """

    def __init__(self, x: Tensor):
        super().__init__(tuple(x.shape))
        self._x = x

    def _read(self, rows: list[int]) -> Tensor:
        return self._x[rows]


def lazily(x: "Tensor | LazyImages") -> LazyImages:
    """Wrap images as a `LazyImages` if they are a tensor."""
    return x if isinstance(x, LazyImages) else Held(x)


class PixelFile(LazyImages):
    """Pixels in an unnamed temporary file, which the system removes when the last process using it ends.

    Args:
        shape: (N, C, H, W).
        kind: uint8, scaled by 1 / 255 when read, or float32.

    Raises:
        ResourceError: if there is not enough disk space for temporary files.
    """

    def __init__(self, shape: tuple[int, ...], kind: Any = np.uint8):
        super().__init__(shape)
        self._rows = RowFile(_scratch(int(np.prod(shape)) * np.dtype(kind).itemsize), shape, kind)

    def write(self, row: int, image: np.ndarray) -> None:
        """Write one image, (H, W, C), or several starting at `row`, (N, H, W, C), of the dtype of the file."""
        try:
            self._rows.write(row, np.ascontiguousarray(np.moveaxis(image, -1, -3)))
        except OSError as error:
            raise _failed(error, int(np.prod(self.shape)) * self._rows.kind.itemsize) from error

    def first(self, n: int) -> "PixelFile":
        """The first `n` images, sharing the same file."""
        part = object.__new__(PixelFile)
        LazyImages.__init__(part, (n, *self.shape[1:]))
        part._rows = self._rows
        return part

    def _read(self, rows: list[int]) -> Tensor:
        try:
            raw = self._rows.read(rows)
        except (EOFError, OSError) as error:
            place = tempfile.gettempdir()
            raise ResourceError(f"a temporary file in {place} was truncated: repeat the command") from error
        if raw.dtype != np.uint8:
            return torch.from_numpy(raw)
        # Allocated by NumPy, because glibc seldom reuses freed blocks that are aligned like those of torch: the process
        # would grow with every image read.
        return torch.from_numpy(np.divide(raw, np.float32(255), dtype=np.float32))


class Mapped(LazyImages):
    """Images after a function is applied to each.

    Args:
        x: the images.
        change: function from images (M, 3, H, W) to results (M, ...), row by row.
    """

    def __init__(self, x: LazyImages, change: Callable[[Tensor], Tensor]):
        super().__init__((len(x), *change(x[:1]).shape[1:]))
        self._x, self._change = x, change

    def _read(self, rows: list[int]) -> Tensor:
        return self._change(self._x[rows])


class Replaced(LazyImages):
    """Images of which some are replaced.

    Args:
        x: the images.
        rows: indices of the replaced images.
        image: function from indices of replaced images to their new values, (M, ...).
    """

    def __init__(self, x: LazyImages, rows: list[int], image: Callable[[list[int]], Tensor]):
        super().__init__(x.shape)
        self._x, self._rows, self._image = x, frozenset(rows), image

    def _read(self, rows: list[int]) -> Tensor:
        x = self._x[rows].clone()
        if places := [place for place, row in enumerate(rows) if row in self._rows]:
            x[places] = self._image([rows[place] for place in places])
        return x


def _scratch(size: int) -> IO[bytes]:
    """An unnamed temporary file with `size` bytes allocated."""
    try:
        with tempfile.TemporaryFile(buffering=0, prefix="robench-") as file:
            # Allocate now, so that a full disk ends the command early; not all systems support this.
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return shared(file)
    except OSError as error:
        raise _failed(error, size) from error


def _failed(error: OSError, size: int) -> ResourceError:
    place = tempfile.gettempdir()
    if error.errno in _FULL:
        return ResourceError(
            f"no space left in {place} for {size / 1e9:.2g} GB of decoded images: set the environment variable "
            "TMPDIR to a folder with more space"
        )
    return ResourceError(
        f"cannot write to {place} ({error.strerror or error}): set the environment variable TMPDIR to another folder"
    )

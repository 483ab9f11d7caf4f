"""Reading and checking images in NumPy files, without loading unneeded rows."""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from robench.core.errors import ResourceError, one_line
from robench.core.formatting import size
from robench.data._lazy_images import PixelFile

# Number of bytes read at a time.
_PART = 1 << 20
# Above `_LARGE` bytes, what is read at once may not be larger than its file by more than a factor of `_RATIO`, so that
# a small archive cannot fill the memory.
_LARGE, _RATIO = 1 << 27, 100


@dataclass(frozen=True)
class Stored:
    """An array in a NumPy file that is not read yet.

    Attributes:
        read: returns the array.
    """

    shape: tuple[int, ...]
    kind: np.dtype
    read: Callable[[], np.ndarray]


def stored(path: Path) -> dict[str, Stored]:
    """The arrays of a .npz file by name, or the array of a .npy file under the name "". Only their headers are read.

    Raises:
        OSError, ValueError, EOFError, zipfile.BadZipFile or zlib.error: if it is missing or damaged, or contains
            pickled objects.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            shape, _, kind = _header(file)
            return {"": Stored(shape, kind, partial(np.load, path, allow_pickle=False))}
    found = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".npy"):
                with archive.open(name) as member:
                    shape, _, kind = _header(member)
                name = name.removesuffix(".npy")
                found[name] = Stored(shape, kind, partial(_whole, path, name))
    return found


def open_array(path: Path) -> np.ndarray:
    """Open the array of a .npy file as a memory map; objects are not unpickled."""
    with _readable(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def read_archive(
    path: Path, needed: tuple[str, ...], optional: tuple[str, ...], present: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """Read arrays of a .npz file: those that it must have and the optional ones; `present` must exist but is not read.

    Raises:
        ResourceError: if it is missing or damaged, contains pickled objects, or lacks one of `needed` and `present`.
    """
    # Opened here, because NumPy does not close a file that it cannot read.
    with _readable(path), path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if not hasattr(archive, "files"):
            names = " and ".join(sorted((*needed, *present)))
            raise ResourceError(f"{path} is not a .npz archive: expected arrays {names}")
        if missing := sorted(name for name in (*needed, *present) if name not in archive.files):
            raise ResourceError(
                f"{path} has no array {' and '.join(missing)}: it has {', '.join(archive.files) or 'none'}"
            )
    return {name: _whole(path, name) for name in (*needed, *optional) if name in archive.files}


def _whole(path: Path, name: str) -> np.ndarray:
    """Read an array of an archive, if its size is plausible."""
    with _member(path, name) as file:
        shape, _, kind = _header(file)
        _check_size(path, name, math.prod(shape) * kind.itemsize)
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_size(path: Path, name: str, count: int) -> None:
    """Refuse to read `count` bytes of an array at once if they are far more than its file has."""
    if count > max(_LARGE, _RATIO * path.stat().st_size):
        raise ResourceError(
            f"{path}: {name} would expand from {size(path.stat().st_size)} to {size(count)} in memory: if this is "
            "intended, save the archive without compression (numpy.savez)"
        )


def rows(path: Path, name: str) -> int:
    """The number of rows of an array in a .npz archive; 0 for a scalar."""
    with _member(path, name) as file:
        shape, _, _ = _header(file)
    return shape[0] if shape else 0


@contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    with _readable(path), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        yield file


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn a file that is missing, damaged or holds pickled objects into a ResourceError."""
    try:
        yield
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) else ""
        text = one_line(error, 120)
        reason = reason or f"damaged or not an array of numbers ({text})"
        raise ResourceError(f"{path}: {reason}: get the file again") from error


def pixels(array: np.ndarray, path: Path, channels: int = 3) -> Tensor:
    """Convert an array to images (N, channels, H, W), float32 in [0, 1].

    Args:
        array: (N, H, W, 3) or (N, 3, H, W); for gray images (N, H, W), (N, H, W, 1) or (N, 1, H, W). uint8 in
            0 .. 255 or floats in [0, 1].
        path: the file, for messages.
        channels: 3, which repeats the channel of gray images, or 1, for gray images only.

    Raises:
        ResourceError: for another shape, dtype or range.
    """
    array = _channels_last(array, path, channels, array.shape)
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)).astype(np.float32))
    if array.dtype == np.uint8:
        return x.div_(255)
    _check_range(x.numpy(), path)
    return x


def _channels_last(array: np.ndarray, path: Path, channels: int, shape: tuple[int, ...]) -> np.ndarray:
    """Convert images to (N, H, W, channels); messages name `shape`, that of the whole array."""
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 4 and array.shape[-1] not in (1, 3) and array.shape[1] in (1, 3):
        array = np.moveaxis(array, 1, -1)
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise ResourceError(
            f"{path}: images of shape {shape}: expected (N, H, W, 3), (N, 3, H, W), or (N, H, W) for gray images"
        )
    if 0 in array.shape[1:]:
        raise ResourceError(f"{path}: images of shape {shape} have no pixels")
    if channels < array.shape[-1]:
        raise ResourceError(f"{path}: images of shape {shape} have 3 channels: omit channels=1")
    array = np.repeat(array, channels // array.shape[-1], axis=-1)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ResourceError(f"{path}: images of type {array.dtype}: expected uint8, or floats in [0, 1]")
    return array


def _check_range(x: np.ndarray, path: Path) -> None:
    # The comparison also refuses NaN.
    if x.size and not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise ResourceError(
            f"{path}: images in [{float(x.min()):g}, {float(x.max()):g}]: expected floats in [0, 1]"
        )


def member_pixels(path: Path, name: str, samples: int | None, channels: int = 3) -> PixelFile:
    """Read the first images of an array in a .npz archive in parts; see `pixels`."""
    stack: PixelFile | None = None
    at = 0
    with _member(path, name) as file:
        shape, columns_first, kind = _header(file)
        count = shape[0] if samples is None or not shape else min(samples, shape[0])
        at_once = shape if columns_first else shape[1:]
        _check_size(path, name, math.prod(at_once) * kind.itemsize)
        if columns_first or not shape:
            # In Fortran order each image is spread over the whole file.
            array = np.frombuffer(file.read(), kind).reshape(shape, order="F" if columns_first else "C")
            parts = iter([array[:count]])
        else:
            parts = _parts(file, shape, kind, count)
        for part in parts:
            x = _channels_last(part, path, channels, shape)
            if x.dtype != np.uint8:
                x = x.astype(np.float32)
                _check_range(x, path)
            if stack is None:
                stack = PixelFile((count, x.shape[3], *x.shape[1:3]), x.dtype)
            stack.write(at, x)
            at += len(x)
    assert stack is not None
    return stack


def _parts(file: IO[bytes], shape: tuple[int, ...], kind: np.dtype, count: int) -> Iterator[np.ndarray]:
    """Yield the first `count` rows of an array in parts; the rest is read to verify its checksum."""
    row = math.prod(shape[1:]) * kind.itemsize
    some = max(1, _PART // max(row, 1))
    for start in range(0, shape[0], some):
        rows = min(some, shape[0] - start)
        content = file.read(rows * row)
        if len(content) != rows * row:
            raise ValueError("it is truncated")
        if start < count:
            yield np.frombuffer(content, kind).reshape(rows, *shape[1:])[: count - start]


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape of an array, whether it is in Fortran order, and its dtype."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, kind = read(file)
    if kind.hasobject:
        raise ValueError("it contains pickled objects")
    return shape, columns_first, kind


def labels(array: np.ndarray, path: Path, classes: int | None = None) -> Tensor:
    """Convert labels to (N,) int64.

    Raises:
        ResourceError: if they are not one-dimensional whole numbers in 0 .. classes - 1.
    """
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ResourceError(
            f"{path}: labels of shape {array.shape} and type {array.dtype}: expected whole numbers, (N,)"
        )
    y = torch.from_numpy(np.ascontiguousarray(array).astype(np.int64))
    if len(y) and (int(y.min()) < 0 or (classes is not None and int(y.max()) >= classes)):
        last = f"{classes - 1}" if classes else ""
        raise ResourceError(f"{path}: labels in {int(y.min())} .. {int(y.max())}: expected 0 .. {last}")
    return y

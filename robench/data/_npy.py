"""Images in NumPy arrays on the disk: checked, and only the rows that are wanted read."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robench.errors import ResourceError

_MEND = "get the file again"


def open_array(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped and not read.

    Raises:
        ResourceError: when it is missing, damaged or holds pickled objects.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ResourceError(f"{path}: {_reason(error)}: {_MEND}") from error


def read_archive(path: Path, needed: tuple[str, ...], wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of a .npz file that are among `needed` and `wanted`.

    Raises:
        ResourceError: when it is missing or damaged, holds pickled objects, or lacks one of `needed`.
    """
    try:
        # Opened here, because NumPy does not close what it cannot read.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not hasattr(archive, "files"):
                raise ResourceError(f"{path} is no .npz archive: expected arrays {' and '.join(needed)}")
            if lost := [name for name in needed if name not in archive.files]:
                raise ResourceError(
                    f"{path} has no array {' and '.join(lost)}: it has {', '.join(archive.files) or 'none'}"
                )
            return {name: archive[name] for name in (*needed, *wanted) if name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ResourceError(f"{path}: {_reason(error)}: {_MEND}") from error


def pixels(array: np.ndarray, path: Path, channels: int = 3) -> Tensor:
    """Images as (N, `channels`, H, W) float32 in [0, 1].

    Args:
        array: (N, H, W, 3) or (N, 3, H, W); of grey images (N, H, W), (N, H, W, 1) or (N, 1, H, W). uint8 in
            0 .. 255 or floats in [0, 1].
        channels: 3, which repeats grey images, or 1, for grey images alone.

    Raises:
        ResourceError: for another shape, type or range.
    """
    found = array.shape
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 4 and array.shape[-1] not in (1, 3) and array.shape[1] in (1, 3):
        array = np.moveaxis(array, 1, -1)
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise ResourceError(
            f"{path}: images of shape {found}: expected (N, H, W, 3), (N, 3, H, W), or grey ones (N, H, W)"
        )
    if channels < array.shape[-1]:
        raise ResourceError(f"{path}: images of shape {found} are of 3 channels: leave channels=1 out")
    array = np.repeat(array, channels // array.shape[-1], axis=-1)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ResourceError(f"{path}: images of type {array.dtype}: expected uint8, or floats in [0, 1]")
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)).astype(np.float32))
    if array.dtype == np.uint8:
        return x.div_(255)
    # Written so that NaN is refused too.
    if x.numel() and not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise ResourceError(
            f"{path}: images in [{float(x.min()):g}, {float(x.max()):g}]: expected floats in [0, 1]"
        )
    return x


def labels(array: np.ndarray, path: Path, classes: int | None = None) -> Tensor:
    """Labels as (N,) int64.

    Raises:
        ResourceError: when they are not whole numbers in 0 .. classes - 1 in one row.
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


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged or no array of numbers ({' '.join(str(error).split())[:120] or type(error).__name__})"

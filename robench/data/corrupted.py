"""`corrupted`: images of any dataset under the corruptions of ImageNet-C, computed on the fly.

Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
arXiv 1903.12261.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from robench.core import registry
from robench.core.errors import UsageError
from robench.core.specs import Spec, without
from robench.core.transfer import sent_bytes
from robench.corruption.cache import Cache
from robench.corruption.make import library
from robench.corruption.names import COMMON, SEVERITIES, VALIDATION, check_corruption
from robench.corruption.tasks import Task, digest_of, in_order
from robench.data._base import Images

__all__ = [
    "COMMON",
    "SEVERITIES",
    "VALIDATION",
    "bytes8",
    "chunks",
    "corrupt_all",
    "corrupted",
    "spans",
    "tensor",
]

# Images in each task. Fixed, because the cache stores chunks; smaller for large images to bound memory.
_CHUNK, _LARGE_CHUNK, _LARGE = 128, 32, 64


def corrupt_all(
    images: Images,
    corruption: str,
    severity: int,
    seed: int = 0,
    jpeg: bool = False,
    workers: int = 1,
    cache: Cache | None = None,
) -> Iterator[np.ndarray]:
    """Yield every image corrupted, (H, W, 3) uint8, in order; see `robench.corruption.make.corrupt`.

    Args:
        images: the images; their pixels are rounded to 8 bits.
        workers: number of processes, 1 for the current one; results do not depend on it.
        cache: cache for the corrupted images; None for no cache.
    """
    check_corruption(corruption, severity, COMMON + VALIDATION)
    library()
    tasks = (
        Task(pixels, ids, corruption, severity, seed, jpeg, digest_of(pixels, ids) if cache else "", cache)
        for _, pixels, ids in chunks(images)
    )
    for chunk in in_order(tasks, workers):
        yield from chunk.pixels


def check_colours(images: Images) -> None:
    """Check that images have three channels, as the library of corruptions requires.

    Raises:
        UsageError: for images without three channels.
    """
    if images.x.shape[1] != 3:
        raise UsageError(
            f"corruptions need images with 3 channels: {images.name} has {images.x.shape[1]}; attack it instead, or "
            "omit channels=1"
        )


def chunks(images: Images) -> Iterator[tuple[slice, np.ndarray, tuple[int, ...]]]:
    """Yield the images in fixed chunks: rows, pixels (N, H, W, 3) uint8, ids."""
    for rows in spans(images):
        yield rows, bytes8(images.x[rows]), tuple(images.ids[rows].tolist())


def spans(images: Images) -> list[slice]:
    """The rows of each chunk; no pixels are read.

    Raises:
        UsageError: for images without three channels.
    """
    check_colours(images)
    size = _LARGE_CHUNK if images.x.shape[-1] > _LARGE else _CHUNK
    return [slice(start, min(start + size, len(images))) for start in range(0, len(images), size)]


def bytes8(x: Tensor) -> np.ndarray:
    """Convert (N, 3, H, W) floats in [0, 1] to (N, H, W, 3) uint8."""
    return (x * 255).round_().byte().permute(0, 2, 3, 1).contiguous().numpy()


def tensor(pixels: np.ndarray) -> Tensor:
    """Convert (N, H, W, 3) uint8 to (N, 3, H, W) float32 in [0, 1]."""
    return sent_bytes(pixels, torch.device("cpu"))


@registry.datasets.register("corrupted")
def corrupted(
    dataset: str,
    corruption: str,
    severity: int,
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    jpeg: bool = False,
) -> Images:
    """Images of any dataset, corrupted on the fly: `corrupted(dataset="cifar10", corruption="fog", severity=3)`.

    Args:
        dataset: the dataset; images below 32 px are enlarged for it, see `corrupt`.
        corruption, severity, seed: see `robench.corruption.make.corrupt`.
        jpeg: whether the images pass through a JPEG file, as in ImageNet-C but not in CIFAR-10-C.
        split, data_dir, samples: see `robench.data.load_dataset`.

    Raises:
        UsageError: for an unknown dataset, corruption or severity.
        ResourceError: if its files or the library are missing.
    """
    # Imported late to avoid a circular import.
    from robench.data import load_dataset

    check_corruption(corruption, severity, COMMON + VALIDATION)
    whole = load_dataset(dataset, split, samples, data_dir)
    arguments = {
        "dataset": whole.name,
        "corruption": corruption,
        "severity": severity,
        "seed": seed,
        "jpeg": jpeg,
    }
    name = str(without(Spec("corrupted", arguments), seed=0, jpeg=False))
    x = tensor(np.stack(list(corrupt_all(whole, corruption, severity, seed, jpeg))))
    return replace(whole, name=name, x=x)

"""`corrupted`: any data set's images under ImageNet-C's corruptions, made on the spot.

Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
arXiv 1903.12261.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from robench.core import registry
from robench.core.errors import UsageError
from robench.core.specs import Spec
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

# Images a task: fixed, since the cache knows chunks; smaller for larger images, so that memory stays bounded.
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
    """Every image corrupted, (H, W, 3) uint8, in their order: see `robench.corruption.make.corrupt`.

    Args:
        images: their pixels are rounded to 8 bits.
        workers: processes to share the work; 1 for this one alone. It changes no pixel.
        cache: where they are looked for and kept.
    """
    check_corruption(corruption, severity, COMMON + VALIDATION)
    library()
    tasks = (
        Task(pixels, ids, corruption, severity, seed, jpeg, digest_of(pixels, ids) if cache else "", cache)
        for _, pixels, ids in chunks(images)
    )
    for made in in_order(tasks, workers):
        yield from made.pixels


def check_colours(images: Images) -> None:
    """Refuse grey images, which the library of corruptions does not take.

    Raises:
        UsageError: for images that have not three channels.
    """
    if images.x.shape[1] != 3:
        raise UsageError(
            f"corruptions are of images with 3 channels: {images.name} has {images.x.shape[1]}; attack it instead, or "
            "leave channels=1 out"
        )


def chunks(images: Images) -> Iterator[tuple[slice, np.ndarray, tuple[int, ...]]]:
    """The images in fixed chunks: which rows, their pixels (N, H, W, 3) uint8, their ids."""
    for rows in spans(images):
        yield rows, bytes8(images.x[rows]), tuple(images.ids[rows].tolist())


def spans(images: Images) -> list[slice]:
    """The rows of each chunk; no pixel is read.

    Raises:
        UsageError: as `check_colours`.
    """
    check_colours(images)
    size = _LARGE_CHUNK if images.x.shape[-1] > _LARGE else _CHUNK
    return [slice(start, min(start + size, len(images))) for start in range(0, len(images), size)]


def bytes8(x: Tensor) -> np.ndarray:
    """(N, 3, H, W) floats in [0, 1] as (N, H, W, 3) uint8."""
    return (x * 255).round_().byte().permute(0, 2, 3, 1).contiguous().numpy()


def tensor(pixels: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 as (N, 3, H, W) float32 in [0, 1]."""
    # A copy: what another process sent may be read-only, and torch wants an array it may write to.
    x = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)
    return x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


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
    """Any data set's images corrupted on the spot: `corrupted(dataset="cifar10", corruption="fog", severity=3)`.

    Args:
        dataset: whose images; those of less than 32 px are enlarged for it, as `corrupt` says.
        corruption, severity, seed, jpeg: see `robench.corruption.make.corrupt`. The last tells whether the images
            went through a JPEG file, as ImageNet-C's did and CIFAR-10-C's did not.
        split, data_dir, samples: of that data set.

    Raises:
        UsageError: for an unknown data set, corruption or severity.
        ResourceError: when its files are missing, or the library.
    """
    # Imported late: it is the package that this module belongs to.
    from robench.data import load_dataset

    check_corruption(corruption, severity, COMMON + VALIDATION)
    whole = load_dataset(dataset, split, samples, data_dir)
    told = {"dataset": whole.name, "corruption": corruption, "severity": severity}
    told |= ({"seed": seed} if seed else {}) | ({"jpeg": True} if jpeg else {})
    x = tensor(np.stack(list(corrupt_all(whole, corruption, severity, seed, jpeg))))
    return Images(str(Spec("corrupted", told)), split, x, whole.y, whole.ids, whole.classes)

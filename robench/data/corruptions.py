"""ImageNet-C's corruptions, made from the library `imagecorruptions-imaug`, each image by a seed of its own.

Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
arXiv 1903.12261. The library draws from NumPy's global generator, and two corruptions from ones of their own;
all are seeded here from (seed, corruption, severity, sample id), so that neither the order of work nor the
number of workers changes a pixel. Its motion blur, snow, frost and fog differ in detail from the code that made
the published ImageNet-C.
"""

import contextlib
import hashlib
import io
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robench import registry
from robench.data._base import Images
from robench.data._names import COMMON, SEVERITIES, VALIDATION, check_corruption
from robench.errors import ResourceError, UsageError
from robench.specs import Spec

__all__ = ["COMMON", "SEVERITIES", "VALIDATION", "corrupt", "corrupt_all", "corrupted", "to_jpeg"]

PACKAGE = "imagecorruptions-imaug"
SMALLEST = 32
# What ImageNet-C's own images were written with (make_imagenet_c.py of hendrycks/robustness).
JPEG = {"quality": 85, "optimize": True}
# These two ignore NumPy's global generator and take a seed instead.
_SEEDED = ("impulse_noise", "glass_blur")
_CHUNK = 16


def library() -> str:
    """Name and version of what makes the corruptions, such as "imagecorruptions-imaug 1.1.5".

    Raises:
        ResourceError: when it is not installed.
    """
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError as error:
        raise ResourceError(f"corruptions need {PACKAGE}: pip install 'robench[corruptions]'") from error


def corrupt(
    image: np.ndarray, corruption: str, severity: int, sample: int, seed: int = 0, jpeg: bool = False
) -> np.ndarray:
    """One image corrupted.

    Args:
        image: (H, W, 3) uint8, at least 32 px either way.
        corruption: one of COMMON or VALIDATION.
        severity: 1 to 5.
        sample: id of the image in its data set.
        jpeg: give what is left after writing it as a JPEG of ImageNet-C's quality.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UsageError: for another corruption or severity, or too small an image.
        ResourceError: when the library is not installed.
    """
    check_corruption(corruption, severity, COMMON + VALIDATION)
    if min(image.shape[:2]) < SMALLEST:
        raise UsageError(
            f"images of {image.shape[1]}x{image.shape[0]} px cannot be corrupted: expected {SMALLEST} or more"
        )
    library()
    from imagecorruptions import corrupt as apply

    own = _seed(seed, corruption, severity, sample)
    given = {"seed": own} if corruption in _SEEDED else {}
    # The library draws from NumPy's old generator, so that one is set, and set back.
    before = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(own)  # noqa: NPY002
        # The library prints here and there, and `--json` keeps stdout for itself.
        with contextlib.redirect_stdout(sys.stderr):
            made = apply(image, severity=severity, corruption_name=corruption, **given)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return decode_jpeg(to_jpeg(made)) if jpeg else made


def corrupt_all(
    images: Images, corruption: str, severity: int, seed: int = 0, jpeg: bool = False, workers: int = 1
) -> Iterator[np.ndarray]:
    """Every image corrupted, in their order: see `corrupt`.

    Args:
        images: their pixels are rounded to 8 bits.
        workers: processes to share the work; 1 for this one alone. It changes no pixel.
    """
    check_corruption(corruption, severity, COMMON + VALIDATION)
    library()
    tasks = (
        (bytes8(images.x[start : start + _CHUNK]), images.ids[start : start + _CHUNK].tolist())
        for start in range(0, len(images), _CHUNK)
    )
    told = (corruption, severity, seed, jpeg)
    if workers <= 1:
        for pixels, ids in tasks:
            yield from _chunk(pixels, ids, *told)
        return
    # A forked child would share torch's threads, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = [pool.submit(_chunk, pixels, ids, *told) for pixels, ids in tasks]
        for future in waiting:
            yield from future.result()


def bytes8(x: Tensor) -> np.ndarray:
    """(N, 3, H, W) floats in [0, 1] as (N, H, W, 3) uint8."""
    return (x * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def to_jpeg(image: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as a JPEG file of ImageNet-C's quality."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", **JPEG)
    return file.getvalue()


def decode_jpeg(content: bytes) -> np.ndarray:
    """The pixels of a JPEG file, (H, W, 3) uint8."""
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


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
        dataset: whose images; at least 32 px.
        corruption, severity, seed, jpeg: see `corrupt`. The last tells whether the images went through a JPEG
            file, as ImageNet-C's did and CIFAR-10-C's did not.
        split, data_dir, samples: of that data set.

    Raises:
        UsageError: for an unknown data set, corruption or severity, or too small images.
        ResourceError: when its files are missing, or the library.
    """
    # Imported late: it is the package that this module belongs to.
    from robench.data import load_dataset

    check_corruption(corruption, severity, COMMON + VALIDATION)
    whole = load_dataset(dataset, split, samples, data_dir)
    told = {"dataset": whole.name, "corruption": corruption, "severity": severity}
    told |= ({"seed": seed} if seed else {}) | ({"jpeg": True} if jpeg else {})
    made = np.stack(list(corrupt_all(whole, corruption, severity, seed, jpeg)))
    x = torch.from_numpy(made).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return Images(str(Spec("corrupted", told)), split, x.div_(255), whole.y, whole.ids, whole.classes)


def _chunk(
    pixels: np.ndarray, ids: list[int], corruption: str, severity: int, seed: int, jpeg: bool
) -> list[np.ndarray]:
    return [
        corrupt(image, corruption, severity, sample, seed, jpeg)
        for image, sample in zip(pixels, ids, strict=True)
    ]


def _seed(*purpose: object) -> int:
    digest = hashlib.sha256("\x1f".join(map(str, purpose)).encode()).digest()
    return int.from_bytes(digest[:4], "little")

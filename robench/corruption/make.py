"""Corruption of single images, determined by seed, corruption, severity and sample.

Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
arXiv 1903.12261. Slow corruptions of the library `imagecorruptions-imaug` are computed faster here, to within one gray
level (`robench.corruption.quick`). Its motion blur, snow, frost and fog differ in detail from the code that made the
published ImageNet-C. It draws from NumPy's global generator, and for two corruptions from separate ones. All of
them are seeded for each image, so that results do not depend on the order of work or the number of workers.
"""

import contextlib
import hashlib
import io
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from PIL import Image

from robench.core.errors import ResourceError
from robench.corruption.names import COMMON, VALIDATION, check_corruption

PACKAGE = "imagecorruptions-imaug"
# Minimum height and width that the library accepts.
SMALLEST = 32
# The settings with which ImageNet-C was written (make_imagenet_c.py of hendrycks/robustness).
JPEG = {"quality": 85, "optimize": True}

# Cached, because it is called for every image and reads files.
_version = cache(version)


def library() -> str:
    """Name and version of the library of corruptions, such as "imagecorruptions-imaug 1.1.5".

    Raises:
        ResourceError: if it is not installed.
    """
    try:
        return f"{PACKAGE} {_version(PACKAGE)}"
    except PackageNotFoundError as error:
        raise ResourceError(f"corruptions need {PACKAGE}: pip install {PACKAGE}") from error


def maker(code: Path = Path(__file__).parent) -> str:
    """A description of the code that determines corrupted images: the source of this package (in the folder `code`),
    and the versions of the library and of the packages it uses.

    Raises:
        ResourceError: if the library is not installed.
    """
    parts = [library()]
    for requirement in sorted(Requirement(line).name for line in requires(PACKAGE) or ()):
        # A package may be installed under another name, as with OpenCV.
        with contextlib.suppress(PackageNotFoundError):
            parts.append(f"{requirement} {version(requirement)}")
    source = b"".join(path.read_bytes() for path in sorted(code.glob("*.py")))
    return "\x1f".join((*parts, hashlib.sha256(source).hexdigest()))


def enlargement(height: int, width: int) -> int:
    """The factor by which an image is enlarged for the library: 1 from 32 px on, 2 for 16 px."""
    return -(-SMALLEST // min(height, width))


def corrupt(
    image: np.ndarray, corruption: str, severity: int, sample: int, seed: int = 0, jpeg: bool = False
) -> np.ndarray:
    """Corrupt one image.

    An image below 32 px is enlarged by repeating pixels, corrupted, and averaged back to its size. Its noise is
    therefore weaker and its blur narrower.

    Args:
        image: (H, W, 3) uint8.
        corruption: one of COMMON or VALIDATION.
        severity: 1 to 5.
        sample: id of the image in its dataset.
        seed: seed of the corruption.
        jpeg: whether to compress and decode the result as a JPEG with the quality of ImageNet-C.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UsageError: if the corruption or severity is unknown.
        ResourceError: if the library is not installed.
    """
    check_corruption(corruption, severity, COMMON + VALIDATION)
    library()
    scale = enlargement(*image.shape[:2])
    large = image.repeat(scale, 0).repeat(scale, 1) if scale > 1 else image
    # The library draws from NumPy's legacy global generator, whose state is restored afterwards.
    state = np.random.get_state()  # noqa: NPY002
    try:
        image_seed = _seed(seed, corruption, severity, sample)
        np.random.seed(image_seed)  # noqa: NPY002
        # The library may print, and stdout is reserved for `--json`.
        with contextlib.redirect_stdout(sys.stderr):
            result = apply(large, corruption, severity, image_seed)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    if scale > 1:
        height, width = image.shape[:2]
        blocks = result.reshape(height, scale, width, scale, 3)
        result = np.rint(blocks.mean((1, 3))).astype(np.uint8)
    return decode_jpeg(to_jpeg(result)) if jpeg else result


def apply(image: np.ndarray, corruption: str, severity: int, seed: int) -> np.ndarray:
    """Corrupt an image (H, W, 3) uint8 of at least 32 px, with NumPy's global generator already seeded."""
    # Imported late: compiled loops and OpenCV take a second to import, and only corruptions need them.
    from imagecorruptions import corrupt as library_corrupt

    from robench.corruption import quick

    if corruption == "glass_blur":
        return quick.glass_blur(image, severity, seed)
    if corruption in quick.QUICK:
        return quick.QUICK[corruption](image, severity)
    # Like glass blur, it takes a seed and ignores NumPy's global generator.
    options = {"seed": seed} if corruption == "impulse_noise" else {}
    try:
        with np.errstate(invalid="raise"):
            return library_corrupt(image, severity=severity, corruption_name=corruption, **options)
    except FloatingPointError:
        # Spatter without any drops, as may happen on small images: the library divides by zero, with a result that
        # depends on the processor. The image is left unchanged.
        return image.copy()


def to_jpeg(image: np.ndarray) -> bytes:
    """Encode an image (H, W, 3) uint8 as a JPEG file with the quality of ImageNet-C."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", **JPEG)
    return file.getvalue()


def decode_jpeg(content: bytes) -> np.ndarray:
    """The pixels of a JPEG file, (H, W, 3) uint8."""
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def _seed(*purpose: object) -> int:
    digest = hashlib.sha256("\x1f".join(map(str, purpose)).encode()).digest()
    return int.from_bytes(digest[:4], "little")

"""One image corrupted, decided by seed, corruption, severity and sample alone.

Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
arXiv 1903.12261. What the library `imagecorruptions-imaug` does slowly is done here faster, to within one grey level
(`robench.corruption.quick`); its motion blur, snow, frost and fog differ in detail from the code that made the
published ImageNet-C. It draws from NumPy's global generator, and two corruptions from ones of their own; all are
seeded here by image, so that neither the order of work nor the number of workers changes a pixel.
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
# The library refuses less, either way.
SMALLEST = 32
# What ImageNet-C's own images were written with (make_imagenet_c.py of hendrycks/robustness).
JPEG = {"quality": 85, "optimize": True}

# Asked for every image; found by reading files.
_version = cache(version)


def library() -> str:
    """Name and version of what makes the corruptions, such as "imagecorruptions-imaug 1.1.5".

    Raises:
        ResourceError: when it is not installed.
    """
    try:
        return f"{PACKAGE} {_version(PACKAGE)}"
    except PackageNotFoundError as error:
        raise ResourceError(f"corruptions need {PACKAGE}: pip install {PACKAGE}") from error


def maker(code: Path = Path(__file__).parent) -> str:
    """What decides a corrupted image beside image, corruption, severity and seed: the text of this package (in the
    folder `code`), the library, and the packages that the library computes with.

    Raises:
        ResourceError: when the library is not installed.
    """
    said = [library()]
    for needed in sorted(Requirement(each).name for each in requires(PACKAGE) or ()):
        # One of them may be here by another name, as OpenCV's are.
        with contextlib.suppress(PackageNotFoundError):
            said.append(f"{needed} {version(needed)}")
    texts = b"".join(path.read_bytes() for path in sorted(code.glob("*.py")))
    return "\x1f".join((*said, hashlib.sha256(texts).hexdigest()))


def enlargement(height: int, width: int) -> int:
    """How many times an image is enlarged for the library to take it: 1 from 32 px on, 2 for 16 px."""
    return -(-SMALLEST // min(height, width))


def corrupt(
    image: np.ndarray, corruption: str, severity: int, sample: int, seed: int = 0, jpeg: bool = False
) -> np.ndarray:
    """One image corrupted.

    An image of less than 32 px is corrupted with each pixel repeated, and the mean over each repeated pixel is given
    back: so its noise is weaker and its blur narrower than at a size of its own.

    Args:
        image: (H, W, 3) uint8.
        corruption: one of COMMON or VALIDATION.
        severity: 1 to 5.
        sample: id of the image in its data set.
        jpeg: give what is left after writing it as a JPEG of ImageNet-C's quality.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UsageError: for another corruption or severity.
        ResourceError: when the library is not installed.
    """
    check_corruption(corruption, severity, COMMON + VALIDATION)
    library()
    times = enlargement(*image.shape[:2])
    large = image.repeat(times, 0).repeat(times, 1) if times > 1 else image
    # The library draws from NumPy's old generator, so that one is set, and set back.
    before = np.random.get_state()  # noqa: NPY002
    try:
        own = _seed(seed, corruption, severity, sample)
        np.random.seed(own)  # noqa: NPY002
        # The library prints here and there, and `--json` keeps stdout for itself.
        with contextlib.redirect_stdout(sys.stderr):
            made = apply(large, corruption, severity, own)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    if times > 1:
        height, width = image.shape[:2]
        blocks = made.reshape(height, times, width, times, 3)
        made = np.rint(blocks.mean((1, 3))).astype(np.uint8)
    return decode_jpeg(to_jpeg(made)) if jpeg else made


def apply(image: np.ndarray, corruption: str, severity: int, seed: int) -> np.ndarray:
    """What `corrupt` does when NumPy's global generator is seeded: (H, W, 3) uint8 of 32 px or more, to the same."""
    # Imported late: compiled loops and OpenCV take a second, and only corruptions need them.
    from imagecorruptions import corrupt as library_corrupt

    from robench.corruption import quick

    if corruption == "glass_blur":
        return quick.glass_blur(image, severity, seed)
    if corruption in quick.QUICK:
        return quick.QUICK[corruption](image, severity)
    # This one, as glass blur, takes a seed of its own and ignores NumPy's global generator.
    given = {"seed": seed} if corruption == "impulse_noise" else {}
    try:
        with np.errstate(invalid="raise"):
            return library_corrupt(image, severity=severity, corruption_name=corruption, **given)
    except FloatingPointError:
        # Spatter that hits nothing, as it may in a small image: the library divides by zero, and what comes of it
        # hangs on the processor. Nothing happens to the image.
        return image.copy()


def to_jpeg(image: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as a JPEG file of ImageNet-C's quality."""
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

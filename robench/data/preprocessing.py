"""Resizing and cropping of images, by names such as those of RobustBench: `BicubicRes256Crop224`.

A name consists of `Bicubic` (otherwise bilinear), `Res` with a size and `Crop` with a size, all of them optional.
Before a crop the shorter side is resized and the aspect ratio is kept; without a crop the image is resized to a square.
Pillow processes 8-bit pixels, as in the transforms of torchvision.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from robench.core.errors import UsageError, unknown_name

USUAL = ("Res256Crop224", "BicubicRes256Crop224", "Res224", "Crop288")
NONE = "none"
# The preprocessing declared by the defense.
OWN = "own"
_NAME = re.compile(
    r"(?P<bicubic>Bicubic(?=Res))?(?:Res(?P<res>[1-9]\d{0,3}))?(?:Crop(?P<crop>[1-9]\d{0,3}))?"
)


@dataclass(frozen=True)
class Preprocessing:
    """A preprocessing of images.

    Attributes:
        change: function from image to image.
        smallest: minimum side length in pixels; torchvision would pad smaller images with black before cropping.
    """

    change: Callable[[Image.Image], Image.Image]
    smallest: int = 1


def parse(name: str) -> Preprocessing:
    """Parse the name of a preprocessing.

    Raises:
        UsageError: for a malformed name, a crop larger than the resized image, or "own" without a defense.
    """
    if name == NONE:
        return Preprocessing(lambda image: image)
    if name == OWN:
        raise UsageError(
            f'preprocessing="{OWN}" is the preprocessing of a defense, and there is none here: choose one of '
            + ", ".join(USUAL)
        )
    match = _NAME.fullmatch(name) if isinstance(name, str) and name else None
    if match is None:
        raise unknown_name("preprocessing", str(name), (*USUAL, NONE, OWN))
    # Imported here, because it takes as long as torch itself.
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    how = InterpolationMode.BICUBIC if match["bicubic"] else InterpolationMode.BILINEAR
    res, crop = (int(match[key] or 0) for key in ("res", "crop"))
    if not crop:
        return Preprocessing(Resize((res, res), how))
    if not res:
        return Preprocessing(CenterCrop(crop), crop)
    if crop > res:
        raise UsageError(f"preprocessing {name}: {crop} px cannot be cropped from {res} px")
    return Preprocessing(Compose([Resize(res, how), CenterCrop(crop)]))


def side(name: str) -> int:
    """The side length of preprocessed images in pixels; 0 if it depends on the images."""
    match = _NAME.fullmatch(name)
    return int(match["crop"] or match["res"] or 0) if match else 0


def of_evaluation(
    size: int,
    crop_pct: float | None,
    interpolation: str,
    crop_mode: str | None = None,
    border: int | None = None,
) -> str:
    """The name of timm's preprocessing for evaluation; empty if it cannot be expressed.

    Args:
        size: side length of the final image in pixels.
        crop_pct: side of the crop relative to the resized image; None for 0.875.
        interpolation, crop_mode, border: as in timm's configurations.
    """
    res = math.floor(size / (crop_pct or 0.875))
    if border or crop_mode == "border" or (crop_mode == "squash" and res != size):
        return ""
    return of_sizes(res, size, interpolation, squash=crop_mode == "squash")


def of_sizes(
    res: int | Sequence[int], crop: int | Sequence[int], interpolation: str, squash: bool = False
) -> str:
    """The name of resizing to `res` and center-cropping to `crop`; empty if it cannot be expressed."""
    sizes = [value if isinstance(value, int) else value[0] for value in (res, crop) if value is not None]
    if interpolation not in ("bilinear", "bicubic") or len(sizes) != 2:
        return ""
    prefix = "Bicubic" if interpolation == "bicubic" else ""
    return f"{prefix}Res{sizes[0]}" + ("" if squash else f"Crop{sizes[1]}")

"""How pictures become images of one size, by names such as RobustBench's: `BicubicRes256Crop224`.

A name is `Bicubic` (else bilinear), `Res` with a size and `Crop` with a size, each of which may be missing. Before a
crop the shorter side is brought to the size, keeping the shape; without a crop the picture is squeezed into a square.
All is done on 8-bit pixels, by Pillow, as torchvision's transforms do it.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from robench.core.errors import UsageError, unknown_name

USUAL = ("Res256Crop224", "BicubicRes256Crop224", "Res224", "Crop288")
NONE = "none"
# The defense says which.
OWN = "own"
_NAME = re.compile(
    r"(?P<bicubic>Bicubic(?=Res))?(?:Res(?P<res>[1-9]\d{0,3}))?(?:Crop(?P<crop>[1-9]\d{0,3}))?"
)


@dataclass(frozen=True)
class Preprocessing:
    """What is done to each picture.

    Attributes:
        change: picture to picture.
        smallest: pixels that its sides must have: torchvision would crop a smaller one by adding a black frame.
    """

    change: Callable[[Image.Image], Image.Image]
    smallest: int = 1


def parse(name: str) -> Preprocessing:
    """The preprocessing of that name.

    Raises:
        UsageError: for a malformed name, a crop larger than what it is cut from, or "own" without a defense.
    """
    if name == NONE:
        return Preprocessing(lambda image: image)
    if name == OWN:
        raise UsageError(
            f'preprocessing="{OWN}" is what a defense says of itself, and none is run here: name one of '
            + ", ".join(USUAL)
        )
    match = _NAME.fullmatch(name) if isinstance(name, str) and name else None
    if match is None:
        raise unknown_name("preprocessing", str(name), (*USUAL, NONE, OWN))
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
    """Pixels of the images' sides afterwards; 0 where the name does not decide that."""
    match = _NAME.fullmatch(name)
    return int(match["crop"] or match["res"] or 0) if match else 0


def of_evaluation(
    size: int,
    crop_pct: float | None,
    interpolation: str,
    crop_mode: str | None = None,
    border: int | None = None,
) -> str:
    """The name of what timm does before it evaluates; empty when that has none.

    Args:
        size: of the image in the end.
        crop_pct: the share of the resized picture that is left of it; None for 0.875.
        interpolation, crop_mode, border: as timm's configurations say them.
    """
    res = math.floor(size / (crop_pct or 0.875))
    if border or crop_mode == "border" or (crop_mode == "squash" and res != size):
        return ""
    return of_sizes(res, size, interpolation, squash=crop_mode == "squash")


def of_sizes(
    res: int | Sequence[int], crop: int | Sequence[int], interpolation: str, squash: bool = False
) -> str:
    """The name of resizing to `res` and cropping `crop` in the middle; empty when that has none."""
    sizes = [value if isinstance(value, int) else value[0] for value in (res, crop) if value is not None]
    if interpolation not in ("bilinear", "bicubic") or len(sizes) != 2:
        return ""
    prefix = "Bicubic" if interpolation == "bicubic" else ""
    return f"{prefix}Res{sizes[0]}" + ("" if squash else f"Crop{sizes[1]}")

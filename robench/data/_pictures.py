"""Picture files: which there are, and decoding them exactly as said."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from robench.errors import ResourceError, UsageError, unknown_name

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".webp")
CHUNK = 256
_NAMED = 3

# The names are RobustBench's; all work on 8-bit pixels, as Pillow does it.
PREPROCESSINGS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "Res224": Resize(224),
    "Res256Crop224": Compose([Resize(256), CenterCrop(224)]),
    "BicubicRes256Crop224": Compose([Resize(256, interpolation=InterpolationMode.BICUBIC), CenterCrop(224)]),
    "Crop288": CenterCrop(288),
}
# What an image must have at least: torchvision would crop a smaller one by adding a black frame.
_SMALLEST = {"Crop288": 288}


def check_preprocessing(preprocessing: str) -> None:
    """Refuse a preprocessing that nobody has.

    Raises:
        UsageError: with the known ones.
    """
    if preprocessing not in PREPROCESSINGS:
        raise unknown_name("preprocessing", str(preprocessing), PREPROCESSINGS)


def list_classes(folder: Path, name: str) -> dict[str, list[Path]]:
    """The pictures in each folder of `folder`, by the folder's name; both in the order of their names.

    Hidden files are passed over.

    Raises:
        ResourceError: when the folder cannot be read, holds no folders, or these hold anything but pictures.
    """
    found: dict[str, list[Path]] = {}
    strange: list[Path] = []
    try:
        for inner in sorted(_visible(folder)):
            if inner.is_dir():
                files = sorted(_visible(inner))
                strange += [file for file in files if file.suffix.lower() not in SUFFIXES]
                found[inner.name] = files
    except OSError as error:
        raise ResourceError(f"{error.filename}: {error.strerror}: {name} needs a readable folder") from error
    strange += [folder / each for each, files in found.items() if not files]
    if strange:
        raise ResourceError(
            f"{len(strange)} of the files and folders of {name} are no pictures or empty: {named(strange)}; "
            "move them away or restore them"
        )
    if not found:
        raise ResourceError(f"{folder} holds no folder of pictures: {name} has one a class")
    return found


def decode(paths: Sequence[Path], preprocessing: str, name: str) -> Tensor:
    """Read pictures: three channels, preprocessed, (N, 3, H, W) float32 in [0, 1].

    Several threads decode; what comes out does not depend on how many.

    Args:
        preprocessing: a key of PREPROCESSINGS.
        name: of the data set, for messages.

    Raises:
        ResourceError: when some are missing, damaged or too small for the preprocessing, with their number and
            the first names.
        UsageError: when they come out in several sizes.
    """
    check_preprocessing(preprocessing)

    def one(path: Path) -> np.ndarray | str:
        return _read(path, preprocessing)

    x = torch.empty(0)
    bad: list[tuple[Path, str]] = []
    size: tuple[int, ...] = ()
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            for i, (path, found) in enumerate(zip(chunk, pool.map(one, chunk), strict=True), start):
                if isinstance(found, str):
                    bad.append((path, found))
                    continue
                if not size:
                    size = found.shape
                    x = torch.empty(len(paths), 3, *size[:2])
                if found.shape != size:
                    raise UsageError(
                        f"the images of {name} come in several sizes, {_px(size)} and {_px(found.shape)} "
                        f"({path.name}): choose a preprocessing that makes them equal, of "
                        + ", ".join(PREPROCESSINGS)
                    )
                # A bad picture has been seen: the others are only looked at.
                if not bad:
                    x[i] = torch.from_numpy(found).permute(2, 0, 1)
    if bad:
        raise ResourceError(
            f"{len(bad)} of {len(paths)} images of {name} cannot be used: {named([p for p, _ in bad])} "
            f"({bad[0][1]}); restore them"
        )
    return x.div_(255)


def named(paths: Sequence[Path]) -> str:
    """The first few, and how many more."""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(map(str, paths[:_NAMED])) + more


def _read(path: Path, preprocessing: str) -> np.ndarray | str:
    """Pixels (H, W, 3) uint8, or what is wrong."""
    try:
        with Image.open(path) as image:
            whole = image.convert("RGB")
    except FileNotFoundError:
        return "missing"
    # What Pillow raises at damaged files of the formats above.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"damaged: {' '.join(str(error).split())[:120]}"
    if min(whole.size) < _SMALLEST.get(preprocessing, 1):
        return f"too small for {preprocessing}: {_px(whole.size[::-1])}"
    # A copy, because torch wants an array it may write to.
    return np.array(PREPROCESSINGS[preprocessing](whole))


def _visible(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if not each.name.startswith(".")]


def _px(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]} px"

"""Finding and decoding image files."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from robench.core.errors import ResourceError, UsageError, one_line
from robench.data._lazy_images import PixelFile
from robench.data.preprocessing import USUAL, Preprocessing, parse

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".webp")
CHUNK = 256
_THREADS = 16
_NAMED = 3
Item = TypeVar("Item")
_MISSING: Any = object()


def list_classes(folder: Path, name: str) -> dict[str, list[Path]]:
    """The image files in each subfolder of `folder`, sorted by name; hidden files are skipped.

    Raises:
        ResourceError: if the folder cannot be read, has no subfolders, or these contain anything except images.
    """
    classes: dict[str, list[Path]] = {}
    unusable: list[Path] = []
    try:
        for inner in sorted(_visible(folder)):
            if inner.is_dir():
                files = sorted(_visible(inner))
                unusable += [file for file in files if file.suffix.lower() not in SUFFIXES]
                classes[inner.name] = files
    except OSError as error:
        raise ResourceError(f"{error.filename}: {error.strerror}: {name} needs a readable folder") from error
    unusable += [folder / inner for inner, files in classes.items() if not files]
    check_usable(classes, unusable, folder, name)
    return classes


def check_usable(classes: Sized, unusable: Sequence[Path], folder: Path, name: str) -> None:
    """Refuse a folder without classes, or with files and folders that are not images or are empty."""
    if unusable:
        raise ResourceError(
            f"{len(unusable)} of the files and folders of {name} are not images or are empty: {named(unusable)}; "
            "move them away or restore them"
        )
    if not classes:
        raise ResourceError(f"{folder} has no folders of images: {name} has one for each class")


@dataclass(frozen=True)
class Blob:
    """The content of an image file that is embedded in another file, None if missing, and its location for messages."""

    name: str
    content: bytes | None

    def __str__(self) -> str:
        return self.name


def check_complete(
    files: dict[str, list[Path]], classes: Sequence[str], images: int, folder: Path, name: str, partial: bool
) -> None:
    """Check that `files` are of exactly these classes and this number of images, or with `partial` of some of them.

    Raises:
        ResourceError: if not, with the number of missing images and the names of missing classes.
    """
    check_known(files, classes, folder, name, f"its {len(classes)} classes")
    missing = [folder / synset for synset in classes if synset not in files]
    count = sum(map(len, files.values()))
    if (missing or count < images) and not partial:
        detail = f"; {len(missing)} classes are missing: {named(missing)}" if missing else ""
        raise ResourceError(
            f"{images - count} of the {images} images of {name} are missing{detail}; restore them, or write "
            "partial=True to use those available"
        )


def check_known(files: Iterable[str], classes: Sequence[str], folder: Path, name: str, known: str) -> None:
    """Refuse folders that are not named after a class; `known` describes the classes in the message."""
    names = list(files)
    if unknown := [folder / synset for synset in names if synset not in classes]:
        raise ResourceError(
            f"{len(unknown)} of {len(names)} folders of {name} are not among {known}: {named(unknown)}"
        )


def severity_folder(folder: Path, severity: int, name: str) -> Path:
    """The subfolder of a severity, 1 to 5: the k-th of five folders named by numbers.

    ImageNet-C uses 1 .. 5; the code of ImageNet-C-bar writes numbers such as 2.35.

    Raises:
        ResourceError: if there are not exactly five such folders.
    """
    inner: list[Path] = []
    try:
        inner = [path for path in _visible(folder) if path.is_dir()]
        by_number = {float(path.name): path for path in inner}
    except OSError as error:
        raise ResourceError(f"{folder}: {error.strerror}: {name} needs a readable folder") from error
    except ValueError:
        by_number = {}
    if (folder / str(severity)).is_dir() and by_number.keys() <= {1, 2, 3, 4, 5}:
        return folder / str(severity)
    if len(by_number) != 5:
        names = ", ".join(sorted(path.name for path in inner)[:6]) or "none"
        raise ResourceError(
            f"{folder} has no folder {severity}: {name} has 1, 2, 3, 4 and 5 there, found {names}"
        )
    return by_number[sorted(by_number)[severity - 1]]


def decode(
    pictures: Iterable[tuple[int, Path | Blob]], n: int, preprocessing: str, name: str, channels: int = 3
) -> PixelFile:
    """Decode and preprocess images.

    Several threads decode ahead, because Pillow releases the interpreter lock. The result does not depend on their
    number, and memory does not grow with `n`.

    Args:
        pictures: row and source of each of `n` images, in the order in which they are read.
        n: number of images.
        preprocessing: see `robench.data.preprocessing`.
        name: name of the dataset, for messages.
        channels: 3, or 1 for gray images.

    Raises:
        ResourceError: if images are missing, damaged or too small for the preprocessing, with their number and the
            first names.
        UsageError: if the preprocessed images differ in size.
    """
    steps = parse(preprocessing)
    x: PixelFile | None = None
    failed: list[tuple[Path | Blob, str]] = []
    waiting = iter(pictures)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS)) as pool:
        while chunk := list(islice(waiting, CHUNK)):
            read = pool.map(lambda picture: _read(picture[1], steps, channels), chunk)
            for (row, source), result in zip(chunk, read, strict=True):
                if isinstance(result, str):
                    failed.append((source, result))
                    continue
                size = result.shape[:2]
                if x is None:
                    x = PixelFile((n, channels, *size))
                if size != x.shape[2:]:
                    raise UsageError(
                        f"the images of {name} come in several sizes, {_px(x.shape[2:])} and {_px(size)} "
                        f"({Path(str(source)).name}): choose a preprocessing that makes them equal, such as "
                        + ", ".join(USUAL)
                    )
                # After a failure the other images are only checked.
                if not failed:
                    x.write(row, result)
    if failed or x is None:
        raise ResourceError(
            f"{len(failed)} of {n} images of {name} cannot be used: {named([p for p, _ in failed])} "
            f"({failed[0][1]}); restore them"
        )
    return x


def round_robin(groups: Iterable[Iterable[Item]]) -> list[Item]:
    """The first item of every group, then the second of every group, and so on."""
    rounds = zip_longest(*groups, fillvalue=_MISSING)
    return [item for items in rounds for item in items if item is not _MISSING]


def read_classes(
    files: Mapping[str, Sequence[Path]],
    classes: Sequence[str],
    samples: int | None,
    preprocessing: str,
    name: str,
    channels: int = 3,
) -> tuple[PixelFile, Tensor]:
    """Pixels and labels of the first images of a dataset with one folder per class; see `decode`.

    The order alternates between classes, and a label is the index in `classes`.
    """
    labels = {class_name: k for k, class_name in enumerate(classes)}
    rows = round_robin([(labels[key], path) for path in paths] for key, paths in files.items())[:samples]
    x = decode(enumerate(path for _, path in rows), len(rows), preprocessing, name, channels)
    return x, torch.tensor([label for label, _ in rows], dtype=torch.int64)


def named(paths: Sequence[object]) -> str:
    """Format the first few items and the number of others."""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(map(str, paths[:_NAMED])) + more


def opened(source: Path | Blob, channels: int, smallest: int = 1) -> Image.Image | str:
    """Decode a picture as RGB, or as gray for 1 channel; returns a description of the problem if that fails.

    Args:
        smallest: minimum side length in pixels.
    """
    if isinstance(source, Blob) and source.content is None:
        return "missing"
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source.content or b"")) as image:
            if image.mode == "F":
                return "its pixels are floats: expected 8 or 16 bits"
            converted = _eight_bits(image).convert("RGB" if channels == 3 else "L")
    except FileNotFoundError:
        return "missing"
    except UnidentifiedImageError:
        return "damaged: not an image"
    # Exceptions that Pillow raises for damaged files of these formats.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"damaged: {one_line(error, 120)}"
    if min(converted.size) < smallest:
        return f"too small for a crop of {smallest} px: {_px(converted.size[::-1])}"
    return converted


def _eight_bits(image: Image.Image) -> Image.Image:
    """The upper bytes of a gray image of 16 bits, as Pillow reads color images; other images are unchanged."""
    if not image.mode.startswith("I"):
        return image
    # Pillow's conversion sets all values above 255 to 255.
    return Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))


def _read(source: Path | Blob, preprocessing: Preprocessing, channels: int) -> np.ndarray | str:
    """Pixels (H, W, C) uint8, or a description of the problem."""
    picture = opened(source, channels, preprocessing.smallest)
    return picture if isinstance(picture, str) else np.atleast_3d(np.asarray(preprocessing.change(picture)))


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _px(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]} px"

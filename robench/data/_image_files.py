"""Picture files: which there are, and decoding them exactly as said."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from robench.core.errors import ResourceError, UsageError
from robench.data._lazy_images import PixelFile
from robench.data.preprocessing import USUAL, Preprocessing, parse

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".webp")
CHUNK = 256
_THREADS = 16
_NAMED = 3
Item = TypeVar("Item")
_NOBODY: Any = object()


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


@dataclass(frozen=True)
class Blob:
    """A picture file's content that lies in another file.

    Attributes:
        name: where, for messages.
        content: None when there is none.
    """

    name: str
    content: bytes | None

    def __str__(self) -> str:
        return self.name


def check_complete(
    found: dict[str, list[Path]], classes: Sequence[str], images: int, folder: Path, name: str, partial: bool
) -> None:
    """Refuse a folder with strange classes, or fewer classes or pictures than a data set has.

    Args:
        found: see `list_classes`.
        classes, images: what the data set has.
        partial: pass over what is missing.

    Raises:
        ResourceError: with the number, and the names where they are known.
    """
    if strangers := [folder / each for each in found if each not in classes]:
        raise ResourceError(
            f"{len(strangers)} of {len(found)} folders of {name} are none of its {len(classes)} classes: "
            + named(strangers)
        )
    lost = [folder / each for each in classes if each not in found]
    count = sum(map(len, found.values()))
    if (lost or count < images) and not partial:
        which = f"; {len(lost)} classes are missing: {named(lost)}" if lost else ""
        raise ResourceError(
            f"{images - count} of the {images} images of {name} are missing{which}; restore them, or write "
            "partial=True for those that are there"
        )


def severity_folder(folder: Path, severity: int, name: str) -> Path:
    """The folder of a severity, 1 to 5, in a corruption's: the k-th of five that are named by numbers.

    ImageNet-C's are 1 .. 5, and those that ImageNet-C-bar's code writes are like 2.35.

    Raises:
        ResourceError: when there are not just five.
    """
    inner: list[Path] = []
    try:
        inner = [each for each in _visible(folder) if each.is_dir()]
        by_number = {float(each.name): each for each in inner}
    except OSError as error:
        raise ResourceError(f"{folder}: {error.strerror}: {name} needs a readable folder") from error
    except ValueError:
        by_number = {}
    if (folder / str(severity)).is_dir() and by_number.keys() <= {1, 2, 3, 4, 5}:
        return folder / str(severity)
    if len(by_number) != 5:
        there = ", ".join(sorted(each.name for each in inner)[:6]) or "none"
        raise ResourceError(
            f"{folder} has no folder {severity}: {name} has 1, 2, 3, 4 and 5 there, found {there}"
        )
    return by_number[sorted(by_number)[severity - 1]]


def decode(
    pictures: Iterable[tuple[int, Path | Blob]], n: int, preprocessing: str, name: str, channels: int = 3
) -> PixelFile:
    """Read pictures: three channels, or one of grey, preprocessed.

    Several threads decode ahead (Pillow lets other threads work meanwhile); what comes out does not depend on how
    many, nor does the memory that it takes depend on `n`.

    Args:
        pictures: row and source of each of `n` pictures, in whatever order they are best read.
        preprocessing: see `robench.data.preprocessing`.
        name: of the data set, for messages.

    Raises:
        ResourceError: when some are missing, damaged or too small for the preprocessing, with their number and
            the first names.
        UsageError: when they come out in several sizes.
    """
    how = parse(preprocessing)
    x: PixelFile | None = None
    bad: list[tuple[Path | Blob, str]] = []
    waiting = iter(pictures)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS)) as pool:
        while chunk := list(islice(waiting, CHUNK)):
            read = pool.map(lambda each: _read(each[1], how, channels), chunk)
            for (row, source), found in zip(chunk, read, strict=True):
                if isinstance(found, str):
                    bad.append((source, found))
                    continue
                size = found.shape[:2]
                if x is None:
                    x = PixelFile((n, channels, *size))
                if size != x.shape[2:]:
                    raise UsageError(
                        f"the images of {name} come in several sizes, {_px(x.shape[2:])} and {_px(size)} "
                        f"({Path(str(source)).name}): choose a preprocessing that makes them equal, such as "
                        + ", ".join(USUAL)
                    )
                # A bad picture has been seen: the others are only looked at.
                if not bad:
                    x.write(row, found)
    if bad or x is None:
        raise ResourceError(
            f"{len(bad)} of {n} images of {name} cannot be used: {named([p for p, _ in bad])} "
            f"({bad[0][1]}); restore them"
        )
    return x


def round_robin(groups: Iterable[Iterable[Item]]) -> list[Item]:
    """The first of every group, then every second one, and so on: so the first few are of all groups."""
    rounds = zip_longest(*groups, fillvalue=_NOBODY)
    return [each for one in rounds for each in one if each is not _NOBODY]


def labelled(found: Mapping[str, Sequence[Path]], classes: Sequence[str]) -> list[tuple[int, Path]]:
    """Label and path of each picture, the classes in turn; a label is the place in `classes`."""
    labels = {each: k for k, each in enumerate(classes)}
    return round_robin([(labels[each], file) for file in files] for each, files in found.items())


def named(paths: Sequence[object]) -> str:
    """The first few, and how many more."""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(map(str, paths[:_NAMED])) + more


def _read(source: Path | Blob, how: Preprocessing, channels: int) -> np.ndarray | str:
    """Pixels (H, W, C) uint8, or what is wrong."""
    if isinstance(source, Blob) and source.content is None:
        return "missing"
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source.content or b"")) as image:
            whole = image.convert("RGB" if channels == 3 else "L")
    except FileNotFoundError:
        return "missing"
    except UnidentifiedImageError:
        return "damaged: no picture"
    # What Pillow raises at damaged files of the formats above.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"damaged: {' '.join(str(error).split())[:120]}"
    if min(whole.size) < how.smallest:
        return f"too small for a crop of {how.smallest} px: {_px(whole.size[::-1])}"
    return np.atleast_3d(np.asarray(how.change(whole)))


def _visible(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if not each.name.startswith(".")]


def _px(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]} px"

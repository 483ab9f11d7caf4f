"""`tiny-imagenet`: Le and Yang 2015, "Tiny ImageNet Visual Recognition Challenge" (Stanford CS 231N)."""

import re
from pathlib import Path

import torch

from robench import registry
from robench.data import _pictures
from robench.data._base import Images, check_split, find
from robench.errors import ResourceError

_NUMBER = re.compile(r"(?:val|n\d{8})_(\d+)\.JPEG")


@registry.datasets.register("tiny-imagenet")
def load(split: str = "test", data_dir: str | None = None, samples: int | None = None) -> Images:
    """64x64 images of two hundred of ImageNet's classes; 100,000 for training and 10,000 for testing.

    The test split is the validation part, in the order of the numbers in the file names, which are the ids.
    The training images are ordered by their number in the class, then by class; an id is the position. Labels
    count the classes in the order of their synsets' names. That is the order of the folders, which
    classifiers trained with torchvision's ImageFolder have; `wnids.txt` has another.

    Args:
        split: "train" or "test".
        data_dir: the folder that holds `tiny-imagenet-200`, as the archive unpacks.
        samples: the first so many; None for all.

    Raises:
        UsageError: for another split.
        ResourceError: when files are missing, damaged or not Tiny-ImageNet's.
    """
    check_split("tiny-imagenet", split)
    folder = find("tiny-imagenet", data_dir, ("tiny-imagenet-200",))
    wnids = sorted(_lines(folder / "wnids.txt"))
    labels = {wnid: k for k, wnid in enumerate(wnids)}
    rows = (_train if split == "train" else _test)(folder, labels)[:samples]
    x = _pictures.decode([path for _, _, path in rows], "none", "tiny-imagenet")
    ids, y = (torch.tensor([row[k] for row in rows], dtype=torch.int64) for k in (0, 1))
    return Images("tiny-imagenet", split, x, y, ids, _words(folder, wnids))


def _test(folder: Path, labels: dict[str, int]) -> list[tuple[int, int, Path]]:
    file = folder / "val" / "val_annotations.txt"
    rows = []
    for line in _lines(file):
        name, wnid = [*line.split("\t"), ""][:2]
        match = _NUMBER.fullmatch(name)
        if not match or wnid not in labels:
            raise ResourceError(
                f'{file} has the line "{line[:60]}": expected a file, a tab and a class of wnids.txt'
            )
        rows.append((int(match.group(1)), labels[wnid], folder / "val" / "images" / name))
    return sorted(rows)


def _train(folder: Path, labels: dict[str, int]) -> list[tuple[int, int, Path]]:
    found = []
    for wnid, label in labels.items():
        inner = folder / "train" / wnid / "images"
        try:
            files = [path for path in inner.iterdir() if not path.name.startswith(".")]
        except OSError as error:
            raise ResourceError(
                f"{inner}: {error.strerror}: tiny-imagenet has one such folder a class"
            ) from error
        for path in files:
            match = _NUMBER.fullmatch(path.name)
            if not match:
                raise ResourceError(f"{path} is not named as tiny-imagenet's images are: move it away")
            found.append((int(match.group(1)), label, path))
    return [(i, label, path) for i, (_, label, path) in enumerate(sorted(found))]


def _words(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt") if "\t" in line)
    return tuple(words.get(wnid, wnid) for wnid in wnids)


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ResourceError(f"{file}: {error.strerror}: it belongs to tiny-imagenet") from error
    except UnicodeDecodeError as error:
        raise ResourceError(f"{file} is damaged: {error.reason}; get it again") from error

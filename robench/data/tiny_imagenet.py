"""`tiny-imagenet` and `tiny-imagenet-c`: Le and Yang 2015, "Tiny ImageNet Visual Recognition Challenge" (Stanford
CS 231N), and its corrupted version.
"""

import re
from pathlib import Path

import torch

from robench.core import registry
from robench.core.errors import ResourceError
from robench.core.specs import Spec, without
from robench.data import _image_files
from robench.data._base import Facts, Images, check_split, data_root, described, find
from robench.data._names import COMMON, VALIDATION, check_corruption

WHOLE = Facts("tiny-imagenet-200, as the archive unpacks", "http://cs231n.stanford.edu/tiny-imagenet-200.zip")
C = Facts("Tiny-ImageNet-C/<corruption>/<severity>/<synset>/<picture>", "https://zenodo.org/records/2536630")
CLASSES, IMAGES = 200, 10_000
_NUMBER = re.compile(r"(?:val|n\d{8})_(\d+)\.JPEG")


@registry.datasets.register("tiny-imagenet")
@described(WHOLE)
def load(split: str = "test", data_dir: str | None = None, samples: int | None = None) -> Images:
    """Tiny-ImageNet: 64x64 images of 200 ImageNet classes, 100,000 for training and 10,000 for testing.

    The test split is the validation part, in the order of the numbers in the file names, which are the ids. Training
    images are ordered by number within the class, then by class; an id is the position. Labels follow the sorted
    synsets, as in torchvision's ImageFolder; the order of `wnids.txt` differs.

    Args:
        split: "train" or "test".
        data_dir: folder that contains the unpacked `tiny-imagenet-200`.
        samples: number of images to load, from the start; None for all.

    Raises:
        UsageError: for another split.
        ResourceError: if files are missing, damaged or not those of Tiny-ImageNet.
    """
    check_split("tiny-imagenet", split)
    folder = find("tiny-imagenet", data_dir, ("tiny-imagenet-200",), WHOLE)
    wnids = sorted(_lines(folder / "wnids.txt"))
    labels = {wnid: k for k, wnid in enumerate(wnids)}
    rows = (_train if split == "train" else _test)(folder, labels)[:samples]
    x = _image_files.decode(enumerate(path for _, _, path in rows), len(rows), "none", "tiny-imagenet")
    ids, y = (torch.tensor([row[k] for row in rows], dtype=torch.int64) for k in (0, 1))
    return Images("tiny-imagenet", split, x, y, ids, _words(folder, wnids))


@registry.datasets.register("tiny-imagenet-c")
@described(C)
def load_corrupted(
    corruption: str,
    severity: int,
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    partial: bool = False,
) -> Images:
    """Tiny-ImageNet-C, 10,000 corrupted validation images: `tiny-imagenet-c(corruption="fog", severity=3)`.

    Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", arXiv 1903.12261. Labels are those of `tiny-imagenet`. The order alternates between classes: the
    first image of every class, then the second of every class, and so on. An id is the position in this order.

    Args:
        corruption: one of the nineteen of ImageNet-C.
        severity: 1 to 5.
        data_dir: folder that contains `Tiny-ImageNet-C`, with folders for corruptions, severities and classes. Names of
            classes come from `tiny-imagenet-200/words.txt` if available.
        samples: number of images to load, from the start; None for all.
        partial: accept missing images.

    Raises:
        UsageError: for another split, corruption or severity.
        ResourceError: if images or classes are missing or damaged, with their number.
    """
    check_corruption(corruption, severity, COMMON + VALIDATION)
    spec = Spec("tiny-imagenet-c", {"corruption": corruption, "severity": severity, "partial": partial})
    name = str(without(spec, partial=False))
    check_split(name, split, ("test",))
    facts = C.of(corruption=corruption, severity=severity)
    folder = find(name, data_dir, (f"Tiny-ImageNet-C/{corruption}", f"tiny-imagenet-c/{corruption}"), facts)
    folder = _image_files.severity_folder(folder, severity, name)
    files = _image_files.list_classes(folder, name)
    whole = data_root(data_dir) / "tiny-imagenet-200"
    wnids = sorted(_lines(whole / "wnids.txt")) if whole.is_dir() else list(files)
    if len(wnids) != CLASSES:
        raise ResourceError(
            f"{folder} has folders of {len(wnids)} classes: {name} needs {CLASSES} for its labels; restore "
            "them, or put tiny-imagenet-200, which lists them, next to Tiny-ImageNet-C"
        )
    _image_files.check_complete(files, wnids, IMAGES, folder, name, partial)
    x, y = _image_files.read_classes(files, wnids, samples, "none", name)
    words = _words(whole, wnids) if whole.is_dir() else tuple(wnids)
    return Images(name, split, x, y, torch.arange(len(x)), words)


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
    rows = []
    for wnid, label in labels.items():
        inner = folder / "train" / wnid / "images"
        try:
            files = [path for path in inner.iterdir() if not path.name.startswith(".")]
        except OSError as error:
            raise ResourceError(
                f"{inner}: {error.strerror}: tiny-imagenet has one such folder for each class"
            ) from error
        for path in files:
            match = _NUMBER.fullmatch(path.name)
            if not match:
                raise ResourceError(f"{path} is not named like the images of tiny-imagenet: move it away")
            rows.append((int(match.group(1)), label, path))
    return [(i, label, path) for i, (_, label, path) in enumerate(sorted(rows))]


def _words(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt") if "\t" in line)
    return tuple(words.get(wnid, wnid) for wnid in wnids)


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise ResourceError(f"{file}: {error.strerror}: tiny-imagenet needs this file") from error
    except UnicodeDecodeError as error:
        raise ResourceError(f"{file} is damaged: {error.reason}; get it again") from error

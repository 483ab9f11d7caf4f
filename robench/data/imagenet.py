"""`imagenet` and `imagenet-c`: the ILSVRC 2012 images, and corrupted validation images.

Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge", arXiv 1409.0575.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch

from robench.core import registry
from robench.core.errors import ResourceError
from robench.core.specs import Spec
from robench.data import _image_files, _parquet, imagenet_train
from robench.data import preprocessing as preprocessings
from robench.data._base import Facts, Images, check_split, described, find
from robench.data._image_lists import read_list
from robench.data._lazy_images import PixelFile
from robench.data._names import COMMON, VALIDATION, check_corruption, imagenet_classes, synsets
from robench.data.imagenet_train import HUB
from robench.data.parquet import files_by_part

WHOLE = Facts(
    "imagenet/val/<synset>/ILSVRC2012_val_<number>.JPEG, val/<synset>/..., or imagenet-1k/data/validation-*.parquet",
    "https://image-net.org or https://huggingface.co/datasets/ILSVRC/imagenet-1k",
)
C = Facts(
    "ImageNet-C/<corruption>/<severity>/<synset>/ILSVRC2012_val_<number>.JPEG, or the same in blur/, noise/, ...",
    "https://zenodo.org/records/2235448",
)
_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_ROW = re.compile(r"ILSVRC2012_val_(\d{8})(?:_(n\d{8}))?\.")
# Folders in the archives of ImageNet-C.
_FAMILIES = ("", "noise/", "blur/", "weather/", "digital/", "extra/")
# Id, label and location of an image.
Row = TypeVar("Row", tuple[int, int, Path], tuple[int, int, int])


@registry.datasets.register("imagenet")
@described(WHOLE)
def load(
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    preprocessing: str = "Res256Crop224",
    ids: str = "",
) -> Images:
    """ImageNet, up to 50,000 images for testing and 1,281,167 for training: `imagenet(preprocessing="Res224")`.

    The test split is the validation part, because the test images of the challenge have no labels. Its canonical order
    is that of the numbers in the file names, in which classes are mixed. An id is that number minus one, so that a
    subset of the images keeps its ids. Only the first `samples` images are decoded. Training images are decoded each
    time they are used.

    Args:
        split: "train" or "test".
        data_dir: folder that contains `imagenet/val` or `val`, with a folder for each synset, or `imagenet-1k`, the
            dataset from Hugging Face. Training images are in `imagenet/train`, `train` or `imagenet-1k`.
        samples: number of images to load, from the start; None for all.
        preprocessing: see `robench.data.preprocessing`; "none" for images of equal size, "own" for the preprocessing of
            the defense.
        ids: "robustbench" for the 5,000 images of RobustBench in its order, or the path of a list in the same format.
            All listed images must be available.

    Raises:
        UsageError: for another split or preprocessing, or images of different sizes.
        ResourceError: if files or the list are missing, damaged, or not those of ImageNet.
    """
    preprocessings.parse(preprocessing)
    name = str(Spec("imagenet", {"preprocessing": preprocessing} | ({"ids": ids} if ids else {})))
    check_split(name, split)
    if split == "train":
        return imagenet_train.load(name, data_dir, preprocessing, samples, ids)
    place = find(name, data_dir, ("imagenet/val", "val", HUB), WHOLE)
    read = _of_parquet if place.name == HUB else _of_folder
    return read(name, place, preprocessing, samples, ids)


@registry.datasets.register("imagenet-c")
@described(C)
def load_corrupted(
    corruption: str,
    severity: int,
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    preprocessing: str = "none",
    ids: str = "",
) -> Images:
    """ImageNet-C, corrupted validation images of ImageNet: `imagenet-c(corruption="fog", severity=3)`.

    Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", arXiv 1903.12261. Ids and order are those of `imagenet`.

    Args:
        corruption: one of nineteen.
        severity: 1 to 5.
        data_dir: folder that contains `ImageNet-C`, with a folder for each corruption, optionally inside that of its
            archive (`blur/glass_blur`); it contains folders for severities, and these contain folders for classes.
        samples: number of images to load, from the start; None for all.
        preprocessing, ids: see `imagenet`; the images are already 224 px.

    Raises:
        UsageError: for another split, corruption, severity or preprocessing.
        ResourceError: if files are missing, damaged, or not those of ImageNet-C.
    """
    places = [f"ImageNet-C/{family}{corruption}" for family in _FAMILIES]
    choice = (corruption, severity, preprocessing, ids)
    return load_severity("imagenet-c", C, COMMON + VALIDATION, places, choice, split, data_dir, samples)


def load_severity(
    kind: str,
    facts: Facts,
    known: Sequence[str],
    places: Sequence[str],
    choice: tuple[str, int, str, str],
    split: str,
    data_dir: str | None,
    samples: int | None,
) -> Images:
    """Load one corruption of a dataset in the layout of ImageNet-C.

    Args:
        kind: name of the dataset.
        facts: facts about the dataset.
        known: its corruptions.
        places: possible folders of the corruption; their subfolders are severities, numbered from the mildest.
        choice: corruption, severity, preprocessing and ids, as in `load_corrupted`.
        split, data_dir, samples: as in `load_corrupted`.
    """
    corruption, severity, preprocessing, ids = choice
    check_corruption(corruption, severity, tuple(known))
    preprocessings.parse(preprocessing)
    arguments: dict[str, object] = {"corruption": corruption, "severity": severity}
    arguments |= {"preprocessing": preprocessing} if preprocessing != "none" else {}
    name = str(Spec(kind, arguments | ({"ids": ids} if ids else {})))
    check_split(name, split, ("test",))
    folder = find(name, data_dir, tuple(places), facts.of(corruption=corruption, severity=severity))
    return _of_folder(name, _image_files.severity_folder(folder, severity, name), preprocessing, samples, ids)


def _of_folder(name: str, folder: Path, preprocessing: str, samples: int | None, ids: str) -> Images:
    known = numbered(_image_files.list_classes(folder, name), folder, name)
    rows = _chosen(known, name, samples, ids)
    x = _image_files.decode(enumerate(path for _, _, path in rows), len(rows), preprocessing, name)
    return _images(name, rows, x)


def _of_parquet(name: str, folder: Path, preprocessing: str, samples: int | None, ids: str) -> Images:
    files = files_by_part(folder).get("validation", [])
    if not files:
        raise ResourceError(
            f"{folder} contains no validation-*.parquet: get the validation part of {WHOLE.source}"
        )
    table = _parquet.open_table(files, name)
    rows = _chosen(_numbered_rows(table, name), name, samples, ids)
    x = _image_files.decode(table.pictures([row for _, _, row in rows]), len(rows), preprocessing, name)
    return _images(name, rows, x)


def _images(name: str, rows: Sequence[tuple[int, int, object]], x: PixelFile) -> Images:
    ids, y = (torch.tensor([row[k] for row in rows], dtype=torch.int64) for k in (0, 1))
    return Images(name, "test", x, y, ids, imagenet_classes())


def _chosen(rows: list[Row], name: str, samples: int | None, ids: str) -> list[Row]:
    """The first rows, or those of a list in its order."""
    if not ids:
        return rows[:samples]
    listed = read_list(ids, name)
    by_id = {row[0]: row for row in rows}
    missing = [picture for picture in listed if picture.number not in by_id]
    if missing:
        raise ResourceError(
            f"{len(missing)} of the {len(listed)} images of ids={ids!r} are not among the {len(rows)} of {name}: "
            f"{_image_files.named(missing)}; get all of the validation images"
        )
    return [by_id[picture.number] for picture in listed][:samples]


def _numbered_rows(table: _parquet.Table, name: str) -> list[tuple[int, int, int]]:
    """Id, label and row of each image, in canonical order."""
    rows: dict[int, tuple[int, int, int]] = {}
    misnamed: list[str] = []
    for row, (file, label) in enumerate(zip(table.names(), table.labels.tolist(), strict=True)):
        match = _ROW.match(file)
        number = int(match[1]) - 1 if match else -1
        # Hugging Face names files by number and class, which must agree with the label.
        wrong_class = (
            match is not None and match[2] is not None and synsets()[label : label + 1] != (match[2],)
        )
        if number < 0 or number in rows or wrong_class:
            misnamed.append(f"row {row}, {file or 'without a name'}, label {label}")
        else:
            rows[number] = (number, label, row)
    if misnamed:
        raise ResourceError(
            f"{len(misnamed)} of {len(table.labels)} rows of {name} are not named like its images, "
            "ILSVRC2012_val_00000001_<synset>.JPEG, with unique numbers and matching classes: "
            f"{_image_files.named(misnamed)}; for your own images use parquet:FOLDER"
        )
    return [rows[number] for number in sorted(rows)]


def numbered(files: dict[str, list[Path]], folder: Path, name: str) -> list[tuple[int, int, Path]]:
    """Id, label and path of each image, in canonical order.

    Raises:
        ResourceError: for a folder that is not one of the 1,000 synsets, or files not named like those of ImageNet.
    """
    labels = {synset: k for k, synset in enumerate(synsets())}
    _image_files.check_known(files, synsets(), folder, name, "ImageNet's 1,000 synsets")
    rows: dict[int, tuple[int, int, Path]] = {}
    misnamed: list[Path] = []
    for synset, paths in files.items():
        for path in paths:
            match = _FILE.fullmatch(path.name)
            number = int(match[1]) - 1 if match else -1
            if number < 0 or number in rows:
                misnamed.append(path)
            else:
                rows[number] = (number, labels[synset], path)
    if misnamed:
        raise ResourceError(
            f"{len(misnamed)} files of {name} are not named like its images, ILSVRC2012_val_00000001.JPEG, with unique "
            f'numbers: {_image_files.named(misnamed)}; for your own images use folder:DIR(classes="imagenet")'
        )
    return [rows[number] for number in sorted(rows)]

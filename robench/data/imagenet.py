"""`imagenet` and `imagenet-c`: the ILSVRC 2012 validation images, as they are and corrupted.

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
from robench.data import _image_files, _parquet
from robench.data import preprocessing as preprocessings
from robench.data._base import Facts, Images, check_split, described, find
from robench.data._image_lists import read_list
from robench.data._lazy_images import PixelFile
from robench.data._names import COMMON, VALIDATION, check_corruption, imagenet_classes, synsets
from robench.data.parquet import files_by_part

WHOLE = Facts(
    "imagenet/val/<synset>/ILSVRC2012_val_<number>.JPEG, val/<synset>/..., or imagenet-1k/data/validation-*.parquet",
    "https://image-net.org or https://huggingface.co/datasets/ILSVRC/imagenet-1k",
)
C = Facts(
    "ImageNet-C/<corruption>/<severity>/<synset>/ILSVRC2012_val_<number>.JPEG, or the same in blur/, noise/, ...",
    "https://zenodo.org/records/2235448",
)
# What Hugging Face calls it.
HUB = "imagenet-1k"
_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_ROW = re.compile(r"ILSVRC2012_val_(\d{8})(?:_(n\d{8}))?\.")
# The folders that ImageNet-C's own archives make.
_FAMILIES = ("", "noise/", "blur/", "weather/", "digital/", "extra/")
# Id, label, and where the image is.
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
    """ImageNet's validation images, as many of the 50,000 as there are: `imagenet(preprocessing="Res224")`.

    The canonical order is that of the numbers in the file names, in which the classes are mixed; an id is that
    number less one, so that a part of the images has the ids that it has in the whole. Only the first
    `samples` are decoded.

    Args:
        split: "test", which is the validation part: the challenge's own test images have no labels.
        data_dir: the folder that holds `imagenet/val` or `val`, with a folder a class, named by its synset; or
            `imagenet-1k`, the data set as Hugging Face has it.
        samples: the first so many; None for all.
        preprocessing: see `robench.data.preprocessing`; "none" for images that are of one size already, "own" for what
            the defense says of itself.
        ids: "robustbench" for the 5,000 images of RobustBench, in its order, or the path of a list such as its; all
            of them must be there.

    Raises:
        UsageError: for another split or preprocessing, or images of several sizes.
        ResourceError: when files or the list are missing, damaged, or not ImageNet's.
    """
    preprocessings.parse(preprocessing)
    name = str(Spec("imagenet", {"preprocessing": preprocessing} | ({"ids": ids} if ids else {})))
    check_split(name, split, ("test",))
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
    """ImageNet's validation images corrupted: `imagenet-c(corruption="fog", severity=3)`.

    Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", arXiv 1903.12261. Ids and order as in `imagenet`.

    Args:
        corruption: one of nineteen.
        severity: 1 to 5.
        data_dir: the folder that holds `ImageNet-C`, with a folder a corruption, by itself or as the archives
            unpack (`blur/glass_blur`), therein one a severity and one a class.
        samples: the first so many; None for all.
        preprocessing, ids: see `imagenet`; the images are 224 px already.

    Raises:
        UsageError: for another split, corruption, severity or preprocessing.
        ResourceError: when files are missing, damaged, or not ImageNet-C's.
    """
    places = [f"ImageNet-C/{family}{corruption}" for family in _FAMILIES]
    told = (corruption, severity, preprocessing, ids)
    return load_severity("imagenet-c", C, COMMON + VALIDATION, places, told, split, data_dir, samples)


def load_severity(
    kind: str,
    facts: Facts,
    known: Sequence[str],
    places: Sequence[str],
    told: tuple[str, int, str, str],
    split: str,
    data_dir: str | None,
    samples: int | None,
) -> Images:
    """One corruption of a data set of ImageNet-C's layout.

    Args:
        kind: name of the data set.
        known: its corruptions.
        places: where the corruption's folder may be; therein is one a severity, the mildest has the least number.
        told: corruption, severity, preprocessing and ids, as `load_corrupted` takes them.
    """
    corruption, severity, preprocessing, ids = told
    check_corruption(corruption, severity, tuple(known))
    preprocessings.parse(preprocessing)
    said = {"corruption": corruption, "severity": severity}
    said |= {"preprocessing": preprocessing} if preprocessing != "none" else {}
    name = str(Spec(kind, said | ({"ids": ids} if ids else {})))
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
            f"{folder} holds no validation-*.parquet: get the part validation of {WHOLE.source}"
        )
    table = _parquet.open_table(files, name)
    rows = _chosen(_numbered_rows(table, name), name, samples, ids)
    x = _image_files.decode(table.pictures([row for _, _, row in rows]), len(rows), preprocessing, name)
    return _images(name, rows, x)


def _images(name: str, rows: Sequence[tuple[int, int, object]], x: PixelFile) -> Images:
    ids, y = (torch.tensor([row[k] for row in rows], dtype=torch.int64) for k in (0, 1))
    return Images(name, "test", x, y, ids, imagenet_classes())


def _chosen(rows: list[Row], name: str, samples: int | None, ids: str) -> list[Row]:
    """The first of the rows, or those that a list names, in its order."""
    if not ids:
        return rows[:samples]
    wanted = read_list(ids, name)
    there = {row[0]: row for row in rows}
    lost = [picture for picture in wanted if picture.number not in there]
    if lost:
        raise ResourceError(
            f"{len(lost)} of the {len(wanted)} images of ids={ids!r} are not among the {len(rows)} of {name}: "
            f"{_image_files.named(lost)}; get all of the validation images"
        )
    return [there[picture.number] for picture in wanted][:samples]


def _numbered_rows(table: _parquet.Table, name: str) -> list[tuple[int, int, int]]:
    """Id, label and row of each image, in canonical order."""
    rows: dict[int, tuple[int, int, int]] = {}
    strange: list[str] = []
    for row, (file, label) in enumerate(zip(table.names(), table.labels.tolist(), strict=True)):
        match = _ROW.match(file)
        number = int(match[1]) - 1 if match else -1
        # Hugging Face's files are named by number and class: the label must be that class.
        other = match is not None and match[2] is not None and synsets()[label : label + 1] != (match[2],)
        if number < 0 or number in rows or other:
            strange.append(f"row {row}, {file or 'without a name'}, of label {label}")
        else:
            rows[number] = (number, label, row)
    if strange:
        raise ResourceError(
            f"{len(strange)} of {len(table.labels)} rows of {name} are not named as its images are, "
            "ILSVRC2012_val_00000001_<synset>.JPEG, each number once and by its class: "
            f"{_image_files.named(strange)}; for images of your own write parquet:FOLDER"
        )
    return [rows[number] for number in sorted(rows)]


def numbered(found: dict[str, list[Path]], folder: Path, name: str) -> list[tuple[int, int, Path]]:
    """Id, label and path of each image, in canonical order.

    Raises:
        ResourceError: for a folder that is no synset of the thousand, or files not named as ImageNet's are.
    """
    labels = {synset: k for k, synset in enumerate(synsets())}
    if strangers := [folder / each for each in found if each not in labels]:
        raise ResourceError(
            f"{len(strangers)} of {len(found)} folders of {name} are no synset of ImageNet's thousand: "
            f"{_image_files.named(strangers)}"
        )
    rows: dict[int, tuple[int, int, Path]] = {}
    strange: list[Path] = []
    for synset, paths in found.items():
        for path in paths:
            match = _FILE.fullmatch(path.name)
            number = int(match[1]) - 1 if match else -1
            if number < 0 or number in rows:
                strange.append(path)
            else:
                rows[number] = (number, labels[synset], path)
    if strange:
        raise ResourceError(
            f"{len(strange)} files of {name} are not named as its images are, ILSVRC2012_val_00000001.JPEG, each "
            f'number once: {_image_files.named(strange)}; for images of your own write folder:DIR(classes="imagenet")'
        )
    return [rows[number] for number in sorted(rows)]

"""`imagenet` and `imagenet-c`: the ILSVRC 2012 validation images, as they are and corrupted.

Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge", arXiv 1409.0575.
"""

import re
from pathlib import Path

import torch

from robench import registry
from robench.data import _pictures
from robench.data._base import Images, check_split, find
from robench.data._names import COMMON, VALIDATION, check_corruption, imagenet_classes, synsets
from robench.errors import ResourceError
from robench.specs import Spec

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# The folders that ImageNet-C's own archives make.
_FAMILIES = ("", "noise/", "blur/", "weather/", "digital/", "extra/")


@registry.datasets.register("imagenet")
def load(
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    preprocessing: str = "Res256Crop224",
) -> Images:
    """ImageNet's validation images, as many of the 50,000 as there are: `imagenet(preprocessing="Res224")`.

    The canonical order is that of the numbers in the file names, in which the classes are mixed; an id is that
    number less one, so that a part of the images has the ids that it has in the whole. Only the first
    `samples` are decoded.

    Args:
        split: "test", which is the validation part: the challenge's own test images have no labels.
        data_dir: the folder that holds `imagenet/val` or `val`, with a folder a class, named by its synset.
        samples: the first so many; None for all.
        preprocessing: "Res256Crop224", "BicubicRes256Crop224", "Res224", "Crop288", or "none" for images that
            are of one size already.

    Raises:
        UsageError: for another split or preprocessing, or images of several sizes.
        ResourceError: when files are missing, damaged, or not ImageNet's.
    """
    _pictures.check_preprocessing(preprocessing)
    name = str(Spec("imagenet", {"preprocessing": preprocessing}))
    check_split(name, split, ("test",))
    folder = find(name, data_dir, ("imagenet/val", "val"))
    return _load(name, folder, preprocessing, samples)


@registry.datasets.register("imagenet-c")
def load_corrupted(
    corruption: str,
    severity: int,
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    preprocessing: str = "none",
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
        preprocessing: see `imagenet`; the images are 224 px already.

    Raises:
        UsageError: for another split, corruption, severity or preprocessing.
        ResourceError: when files are missing, damaged, or not ImageNet-C's.
    """
    check_corruption(corruption, severity, COMMON + VALIDATION)
    _pictures.check_preprocessing(preprocessing)
    told = {"corruption": corruption, "severity": severity}
    name = str(
        Spec("imagenet-c", told | ({"preprocessing": preprocessing} if preprocessing != "none" else {}))
    )
    check_split(name, split, ("test",))
    places = tuple(f"ImageNet-C/{family}{corruption}/{severity}" for family in _FAMILIES)
    return _load(name, find(name, data_dir, places), preprocessing, samples)


def _load(name: str, folder: Path, preprocessing: str, samples: int | None) -> Images:
    rows = numbered(_pictures.list_classes(folder, name), folder, name)[:samples]
    x = _pictures.decode([path for _, _, path in rows], preprocessing, name)
    ids, y = (torch.tensor([row[k] for row in rows], dtype=torch.int64) for k in (0, 1))
    return Images(name, "test", x, y, ids, imagenet_classes())


def numbered(found: dict[str, list[Path]], folder: Path, name: str) -> list[tuple[int, int, Path]]:
    """Id, label and path of each image, in canonical order.

    Raises:
        ResourceError: for a folder that is no synset of the thousand, or files not named as ImageNet's are.
    """
    labels = {synset: k for k, synset in enumerate(synsets())}
    if strangers := [folder / each for each in found if each not in labels]:
        raise ResourceError(
            f"{len(strangers)} of {len(found)} folders of {name} are no synset of ImageNet's thousand: "
            f"{_pictures.named(strangers)}"
        )
    rows: dict[int, tuple[int, int, Path]] = {}
    strange: list[Path] = []
    for synset, paths in found.items():
        for path in paths:
            match = _NUMBER.fullmatch(path.name)
            number = int(match.group(1)) - 1 if match else -1
            if number < 0 or number in rows:
                strange.append(path)
            else:
                rows[number] = (number, labels[synset], path)
    if strange:
        raise ResourceError(
            f"{len(strange)} files of {name} are not named as its images are, ILSVRC2012_val_00000001.JPEG, each "
            f'number once: {_pictures.named(strange)}; for images of your own write folder:DIR(classes="imagenet")'
        )
    return [rows[number] for number in sorted(rows)]

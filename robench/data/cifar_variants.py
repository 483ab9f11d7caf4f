"""`cifar10-c`, `cifar100-c` and `cifar10.1`: alternative test images for CIFAR classifiers, as .npy files."""

from pathlib import Path

import numpy as np
import torch

from robench.core import registry
from robench.core.errors import ResourceError, UsageError
from robench.core.specs import Spec
from robench.data import _numpy_files
from robench.data._base import Facts, Images, check_split, described, find
from robench.data._names import (
    CIFAR10_CLASSES,
    CIFAR100_CLASSES,
    COMMON,
    SEVERITIES,
    VALIDATION,
    check_corruption,
)

C10 = Facts("CIFAR-10-C/<corruption>.npy and labels.npy", "https://zenodo.org/records/2535967")
C100 = Facts("CIFAR-100-C/<corruption>.npy and labels.npy", "https://zenodo.org/records/3555552")
NEW = Facts(
    "cifar10.1_<version>_data.npy and cifar10.1_<version>_labels.npy, or CIFAR-10.1/datasets with both",
    "https://github.com/modestyachts/CIFAR-10.1",
)
VERSIONS = {"v4": 2021, "v6": 2000}


@registry.datasets.register("cifar10-c")
@described(C10)
def load_cifar10_c(
    corruption: str,
    severity: int,
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
) -> Images:
    """CIFAR-10-C, corrupted test images of CIFAR-10: `cifar10-c(corruption="fog", severity=3)`.

    Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", arXiv 1903.12261. An id is the index in the test split of CIFAR-10.

    Args:
        corruption: one of the nineteen of ImageNet-C.
        severity: 1 to 5.
        data_dir: folder that contains `CIFAR-10-C`, with a .npy file for each corruption and `labels.npy`.
        samples: number of images to load, from the start; None for all.

    Raises:
        UsageError: for another split, corruption or severity.
        ResourceError: if a file is missing, damaged or of another shape.
    """
    return _corrupted("cifar10-c", corruption, severity, split, data_dir, samples)


@registry.datasets.register("cifar100-c")
@described(C100)
def load_cifar100_c(
    corruption: str,
    severity: int,
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
) -> Images:
    """CIFAR-100-C, corrupted test images of CIFAR-100 from the folder `CIFAR-100-C`; otherwise like `cifar10-c`."""
    return _corrupted("cifar100-c", corruption, severity, split, data_dir, samples)


# Folder, facts and classes of each dataset.
_SETS = {
    "cifar10-c": ("CIFAR-10-C", C10, CIFAR10_CLASSES),
    "cifar100-c": ("CIFAR-100-C", C100, CIFAR100_CLASSES),
}


def _corrupted(
    kind: str, corruption: str, severity: int, split: str, data_dir: str | None, samples: int | None
) -> Images:
    check_corruption(corruption, severity, COMMON + VALIDATION)
    folder, facts, classes = _SETS[kind]
    name = str(Spec(kind, {"corruption": corruption, "severity": severity}))
    check_split(name, split, ("test",))
    images = find(
        name, data_dir, (f"{folder}/{corruption}.npy", f"{corruption}.npy"), facts.of(corruption=corruption)
    )
    # The published files have 10,000 images for each severity; `robench corrupt --samples` writes smaller files.
    block, rest = divmod(sum(_numpy_files.open_array(images).shape[:1]), len(SEVERITIES))
    if rest or not block:
        raise ResourceError(
            f"{images}: {5 * block + rest} images: expected equal numbers for five severities"
        )
    _check_repeated(images.with_name("labels.npy"), block)
    start = (severity - 1) * block
    stop = start + min(samples or block, block)
    return _slice(name, images, images.with_name("labels.npy"), 5 * block, slice(start, stop), classes)


def _check_repeated(path: Path, block: int) -> None:
    """Refuse labels that are not the same for each severity: the files may have a single one."""
    labels = _numpy_files.open_array(path)
    if (
        labels.shape == (len(SEVERITIES) * block,)
        and (labels != np.tile(labels[:block], len(SEVERITIES))).any()
    ):
        raise ResourceError(
            f"{path}: the labels of the first {block} images are not repeated four times: expected five severities "
            "of the same images one after another"
        )


@registry.datasets.register("cifar10.1")
@described(NEW)
def load_cifar10_1(
    split: str = "test", data_dir: str | None = None, samples: int | None = None, version: str = "v6"
) -> Images:
    """CIFAR-10.1, a new test set for CIFAR-10: 2,000 images in version v6, 2,021 in v4.

    Recht et al. 2018, "Do CIFAR-10 Classifiers Generalize to CIFAR-10?", arXiv 1806.00451.

    Args:
        data_dir: folder that contains `cifar10.1_v6_data.npy` and `cifar10.1_v6_labels.npy`, or the authors' repository
            with `CIFAR-10.1/datasets`.
        samples: number of images to load, from the start; None for all.
        version: "v6" or "v4".

    Raises:
        UsageError: for another split or version.
        ResourceError: if a file is missing, damaged or of another shape.
    """
    if version not in VERSIONS:
        raise UsageError(f'cifar10.1 has no version "{version}": expected {" or ".join(VERSIONS)}')
    name = "cifar10.1" if version == "v6" else str(Spec("cifar10.1", {"version": version}))
    check_split(name, split, ("test",))
    file = f"cifar10.1_{version}_data.npy"
    images = find(
        name, data_dir, (file, f"CIFAR-10.1/datasets/{file}", f"CIFAR-10.1/{file}"), NEW.of(version=version)
    )
    labels = images.with_name(f"cifar10.1_{version}_labels.npy")
    return _slice(name, images, labels, VERSIONS[version], slice(0, samples), CIFAR10_CLASSES)


def _slice(
    name: str, images: Path, labels: Path, rows: int, selected: slice, classes: tuple[str, ...]
) -> Images:
    x, y = _numpy_files.open_array(images), _numpy_files.open_array(labels)
    for array, path, shape in ((x, images, (rows, 32, 32, 3)), (y, labels, (rows,))):
        if array.shape != shape:
            raise ResourceError(f"{path}: shape {array.shape}: {name} needs {shape}; get the file again")
    pixels, targets = (
        _numpy_files.pixels(x[selected], images),
        _numpy_files.labels(y[selected], labels, len(classes)),
    )
    return Images(name, "test", pixels, targets, torch.arange(len(pixels)), classes)

"""Statistics of a corruption run: accuracy by corruption and severity, mCE and relative mCE, with intervals.

Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
arXiv 1903.12261, section 3.2 and table 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robench.core import specs
from robench.corruption.names import COMMON, SEVERITIES, VALIDATION
from robench.corruption.suite import Cell
from robench.statistics.accuracy import Accuracy, bootstrap

# AlexNet's mean errors over the five severities, in the order of COMMON, and its clean error: table 1 of the paper,
# with the digits of the authors' spreadsheet (also in the code of AugMix and timm).
ALEXNET: dict[str, float] = dict(
    zip(
        COMMON,
        (0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816,
         0.826572, 0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500),
        strict=True,
    )
)  # fmt: skip
ALEXNET_CLEAN = 0.435
# Measured on the ImageNet validation set at 224 px, so only valid for ImageNet images of this size.
ALEXNET_NAME, _DATASET, _SIDE = "AlexNet (arXiv 1903.12261)", "imagenet", 224
PLAIN = "none"


@dataclass(frozen=True)
class Normaliser:
    """The reference network whose errors normalize corruption errors.

    Attributes:
        name: name of the network, for display.
        errors: mean error over the severities of each corruption, as fractions.
        clean: error without corruption, as a fraction.
    """

    name: str
    errors: Mapping[str, float]
    clean: float


def normaliser(dataset: str, side: int) -> Normaliser | None:
    """AlexNet for ImageNet at 224 px; None otherwise, because AlexNet's errors are only known there."""
    is_valid = specs.parse(dataset).name == _DATASET and side == _SIDE
    return Normaliser(ALEXNET_NAME, ALEXNET, ALEXNET_CLEAN) if is_valid else None


@dataclass(frozen=True)
class Verdicts:
    """Which images are classified correctly, as booleans.

    Attributes:
        cells: the corruption and severity of each column of `corrupted`.
        clean: without corruption, (N,).
        corrupted: under each cell, (N, cells).
    """

    cells: tuple[Cell, ...]
    clean: np.ndarray
    corrupted: np.ndarray

    def errors(self, name: str) -> np.ndarray:
        """The error of each image averaged over the severities of a corruption, float64 (N,)."""
        columns = [i for i, cell in enumerate(self.cells) if cell.name == name]
        return 1 - self.corrupted[:, columns].mean(1)

    @property
    def names(self) -> list[str]:
        """The corruptions, in order."""
        return list(dict.fromkeys(cell.name for cell in self.cells))

    @property
    def whole(self) -> bool:
        """Whether the benchmark is complete: fifteen corruptions at five severities."""
        required = {(name, severity) for name in COMMON for severity in SEVERITIES}
        return required <= {(cell.name, cell.severity) for cell in self.cells}


def figures(verdicts: Verdicts, by: Normaliser | None, seed: int) -> dict[str, Any]:
    """The fields `corrupted_accuracy` and, for a complete benchmark, `mce` and `relative_mce` of a record.

    Each is a mean over images with a bootstrap interval that resamples all cells of an image together.
    """
    fields: dict[str, Any] = {}
    means: dict[str, np.ndarray] = {}
    for kind, names in (("common", COMMON), ("validation", VALIDATION)):
        if present := [name for name in names if name in verdicts.names]:
            means[kind] = 1 - np.stack([verdicts.errors(name) for name in present]).mean(0)
    if verdicts.whole:
        errors, relative_errors = per_image(verdicts, by)
        means |= {"mce": errors, "relative_mce": relative_errors}
    intervals = bootstrap(np.stack(list(means.values())), seed) if means else []
    for (name, values), (low, high) in zip(means.items(), intervals, strict=True):
        value = float(values.mean())
        if name in ("mce", "relative_mce"):
            fields[name] = {"value": value, "interval": [low, high], "normaliser": by.name if by else PLAIN}
        else:
            accuracy = {"value": value, "interval": [max(low, 0.0), min(high, 1.0)]}
            fields.setdefault("corrupted_accuracy", {})[name] = accuracy
    return fields


def per_image(verdicts: Verdicts, by: Normaliser | None) -> tuple[np.ndarray, np.ndarray]:
    """The contributions of each image to mCE and relative mCE, (N,) each; their means are the figures.

    Args:
        by: the normaliser; None for plain errors.
    """
    clean = 1.0 - verdicts.clean
    errors = {name: verdicts.errors(name) for name in COMMON}
    if by is None:
        plain = np.mean([errors[name] for name in COMMON], 0)
        return plain, np.mean([errors[name] - clean for name in COMMON], 0)
    return (
        np.mean([errors[name] / by.errors[name] for name in COMMON], 0),
        np.mean([(errors[name] - clean) / (by.errors[name] - by.clean) for name in COMMON], 0),
    )


def accuracies(verdicts: Verdicts) -> dict[str, dict[str, Accuracy]]:
    """Accuracy by corruption and severity, with Wilson intervals."""
    table: dict[str, dict[str, Accuracy]] = {}
    for cell, column in zip(verdicts.cells, verdicts.corrupted.T, strict=True):
        table.setdefault(cell.name, {})[str(cell.severity)] = Accuracy.of(int(column.sum()), len(column))
    return table


def first_wrong(verdicts: Verdicts, corruptions: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The first corruption that causes an error on each image, as in `fooled_by`, and its cell, -1 for none.

    Args:
        corruptions: canonical specs of the corruptions, in order.
    """
    spec_of = dict(zip(verdicts.names, corruptions, strict=True))
    wrong = ~verdicts.corrupted
    first_cell = np.where(wrong.any(1) & verdicts.clean, wrong.argmax(1), -1)
    fooled_by = [
        "clean" if not correct else "" if cell < 0 else spec_of[verdicts.cells[cell].name]
        for correct, cell in zip(verdicts.clean, first_cell, strict=True)
    ]
    return fooled_by, first_cell

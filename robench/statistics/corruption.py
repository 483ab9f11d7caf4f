"""What a run under corruptions comes to: accuracy a cell, mCE and relative mCE, with their uncertainty.

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

# AlexNet's mean errors over the five severities, in the order of COMMON, and its clean error: table 1 of the paper, to
# the digits that the authors' spreadsheet has (AugMix's and timm's code carry the same).
ALEXNET: dict[str, float] = dict(
    zip(
        COMMON,
        (0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816,
         0.826572, 0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500),
        strict=True,
    )
)  # fmt: skip
ALEXNET_CLEAN = 0.435
# They are of the full validation set at 224 px: of ImageNet's images at this size, and of no others.
ALEXNET_NAME, _DATASET, _SIDE = "AlexNet (arXiv 1903.12261)", "imagenet", 224
PLAIN = "none"


@dataclass(frozen=True)
class Normaliser:
    """Whose errors a corruption error is divided by.

    Attributes:
        name: for readers.
        errors: mean over the severities, by corruption; clean: without one. Fractions.
    """

    name: str
    errors: Mapping[str, float]
    clean: float


def normaliser(dataset: str, side: int) -> Normaliser | None:
    """AlexNet for ImageNet at 224 px; None for everything else, where its errors mean nothing."""
    fits = specs.parse(dataset).name == _DATASET and side == _SIDE
    return Normaliser(ALEXNET_NAME, ALEXNET, ALEXNET_CLEAN) if fits else None


@dataclass(frozen=True)
class Verdicts:
    """Which images are right: bool.

    Attributes:
        cells: in the order of the columns.
        clean: (N,); corrupted: (N, cells).
    """

    cells: tuple[Cell, ...]
    clean: np.ndarray
    corrupted: np.ndarray

    def errors(self, name: str) -> np.ndarray:
        """Each image's share of wrong answers over the severities of a corruption, float64 (N,)."""
        columns = [i for i, cell in enumerate(self.cells) if cell.name == name]
        return 1 - self.corrupted[:, columns].mean(1)

    @property
    def names(self) -> list[str]:
        """The corruptions, in order."""
        return list(dict.fromkeys(cell.name for cell in self.cells))

    @property
    def whole(self) -> bool:
        """Whether all of the benchmark is there: fifteen corruptions at five severities."""
        wanted = {(name, severity) for name in COMMON for severity in SEVERITIES}
        return wanted <= {(cell.name, cell.severity) for cell in self.cells}


def figures(found: Verdicts, by: Normaliser | None, seed: int) -> dict[str, Any]:
    """The fields `corrupted_accuracy`, and of a whole benchmark `mce` and `relative_mce`, as a record has them.

    Each is a mean over the images, so its interval is that of the bootstrap: all cells of an image go together.
    """
    made: dict[str, Any] = {}
    means: dict[str, np.ndarray] = {}
    for kind, names in (("common", COMMON), ("validation", VALIDATION)):
        if present := [name for name in names if name in found.names]:
            means[kind] = 1 - np.stack([found.errors(name) for name in present]).mean(0)
    if found.whole:
        errors, lost = per_image(found, by)
        means |= {"mce": errors, "relative_mce": lost}
    intervals = bootstrap(np.stack(list(means.values())), seed) if means else []
    for (name, own), (low, high) in zip(means.items(), intervals, strict=True):
        value = float(own.mean())
        if name in ("mce", "relative_mce"):
            made[name] = {"value": value, "interval": [low, high], "normaliser": by.name if by else PLAIN}
        else:
            held = {"value": value, "interval": [max(low, 0.0), min(high, 1.0)]}
            made.setdefault("corrupted_accuracy", {})[name] = held
    return made


def per_image(found: Verdicts, by: Normaliser | None) -> tuple[np.ndarray, np.ndarray]:
    """What each image adds to mCE and to relative mCE, (N,) each: their means are the figures.

    Args:
        by: None for plain errors.
    """
    clean = 1.0 - found.clean
    own = {name: found.errors(name) for name in COMMON}
    if by is None:
        return np.mean([own[name] for name in COMMON], 0), np.mean([own[name] - clean for name in COMMON], 0)
    return (
        np.mean([own[name] / by.errors[name] for name in COMMON], 0),
        np.mean([(own[name] - clean) / (by.errors[name] - by.clean) for name in COMMON], 0),
    )


def accuracies(found: Verdicts) -> dict[str, dict[str, Accuracy]]:
    """Accuracy by corruption and severity, with Wilson's intervals."""
    made: dict[str, dict[str, Accuracy]] = {}
    for cell, column in zip(found.cells, found.corrupted.T, strict=True):
        made.setdefault(cell.name, {})[str(cell.severity)] = Accuracy.of(int(column.sum()), len(column))
    return made


def first_wrong(found: Verdicts, specs_: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """What turned each image first, as `fooled_by` has it, and at which cell, -1 for none.

    Args:
        specs_: the corruptions' canonical specs, in order.
    """
    by_name = dict(zip(found.names, specs_, strict=True))
    wrong = ~found.corrupted
    place = np.where(wrong.any(1) & found.clean, wrong.argmax(1), -1)
    said = [
        "clean" if not right else "" if cell < 0 else by_name[found.cells[cell].name]
        for right, cell in zip(found.clean, place, strict=True)
    ]
    return said, place

"""Tolerances for comparing two runs: differences of margins by rounding, and numbers of images beyond chance."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Tolerance of a margin between logits. Other devices and libraries change it by less, other weights by more.
MARGIN = 0.01
# More than 0.2 points, AutoAttack's threshold for Square, and more than a single image.
POINTS, _IMAGES = 0.002, 2


def margins(logits: "Tensor") -> "Tensor":
    """The difference between the two highest of the logits (N, K), (N,); 0 for a single class."""
    highest = logits.topk(min(2, logits.shape[1]), 1).values
    return highest[:, 0] - highest[:, -1]


def same_margins(expected: "Tensor", actual: "Tensor") -> "Tensor":
    """Which margins (N,) are equal up to rounding, bool (N,); NaN equals NaN."""
    close = (actual - expected).abs() <= MARGIN * (1 + expected.abs())
    return close | (actual.isnan() & expected.isnan()) | (actual == expected)


def beyond_chance(images: int, n: int) -> bool:
    """Whether a number of images out of `n` is larger than chance or rounding can explain."""
    return images > POINTS * n and images >= _IMAGES

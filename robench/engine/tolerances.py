"""Tolerances for comparing two runs: differences of margins by rounding, and numbers of images beyond chance."""

import math
from typing import TYPE_CHECKING, Any

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


def close(expected: Any, actual: Any, tolerance: float) -> Any:
    """Whether numbers, or the numbers of two tensors, differ by at most `tolerance` times 1 + |expected|.

    An infinite number is close to none: the tolerance itself would be infinite.
    """
    difference = abs(actual - expected)
    return (difference <= tolerance * (1 + abs(expected))) & (difference < math.inf)


def same_margins(expected: "Tensor", actual: "Tensor") -> "Tensor":
    """Which margins (N,) are equal up to rounding, bool (N,); NaN equals NaN."""
    same_nan = actual.isnan() & expected.isnan()
    return close(expected, actual, MARGIN) | same_nan | (actual == expected)


def beyond_chance(images: int, n: int) -> bool:
    """Whether a number of images out of `n` is larger than chance or rounding can explain."""
    return images > POINTS * n and images >= _IMAGES

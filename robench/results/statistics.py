"""Accuracies with their uncertainty."""

import math
from dataclasses import dataclass

_Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal


def wilson(k: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for a proportion, as fractions in [0, 1].

    Args:
        k: successes, 0 .. n; of a mean of fractions their sum.
        n: trials, at least 1.

    Raises:
        ValueError: when k or n is out of range.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"{k=}, {n=}: expected n >= 1 and 0 <= k <= n")
    p, z2 = k / n, _Z95 * _Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # The ends are 0 and 1 exactly where k is 0 or n; rounding would leave them a last bit away.
    low = 0.0 if k == 0 else centre - half
    high = 1.0 if k == n else centre + half
    return low, high


@dataclass(frozen=True)
class Accuracy:
    """A fraction of images classified rightly.

    Attributes:
        value: correct / n, in [0, 1].
        correct: how many.
        interval: Wilson's, 95 %, fractions.
    """

    value: float
    correct: int
    interval: tuple[float, float]

    @classmethod
    def of(cls, correct: int, n: int) -> "Accuracy":
        """The accuracy of `correct` right answers among `n`."""
        return cls(correct / n, correct, wilson(correct, n))

"""Accuracies with their uncertainty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, ndtri

_Z95 = float(ndtri(0.975))


def wilson(k: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for a proportion, as fractions in [0, 1].

    Args:
        k: successes, 0 .. n; of a mean of fractions their sum.
        n: trials, at least 1.

    Raises:
        ValueError: when k or n is out of range.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    # Not scipy.stats.binomtest: it refuses fractional successes, and its last bits are not those of existing records.
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"{k=}, {n=}: expected n >= 1 and 0 <= k <= n")
    p, z2 = k / n, _Z95 * _Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # The ends are 0 and 1 exactly where k is 0 or n; rounding would leave them a last bit away.
    low = 0.0 if k == 0 else centre - half
    high = 1.0 if k == n else centre + half
    return low, high


def mcnemar(b: int, c: int) -> float:
    """The exact two-sided p-value that two classifiers, tried on the same images, are equally accurate.

    Args:
        b: images that only the first has right; c: that only the second has.

    McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages"; exact
    by the binomial distribution of b among b + c with probability 1/2.

    Raises:
        ValueError: for negative numbers.
    """
    if b < 0 or c < 0:
        raise ValueError(f"{b=}, {c=}: expected numbers of images")
    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); the latter is NaN for fewer than two values."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def bootstrap(values: ArrayLike, seed: int = 0, resamples: int = 1000) -> list[tuple[float, float]]:
    """95 % intervals, by the percentile bootstrap, of means over images.

    All figures share the resamples: images are drawn whole, so what the figures of an image have in common is kept.

    Args:
        values: one row for each figure, (figures, n) numbers.
        seed: decides every draw.

    Raises:
        ValueError: when there are no images, no resamples, or a value is not finite.

    Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 1 or resamples < 1 or not np.isfinite(table).all():
        raise ValueError(
            f"values of shape {table.shape}, {resamples=}: expected finite rows, one image at least"
        )
    # Not scipy.stats.bootstrap: it draws other images than those whose intervals stand in existing records.
    generator = np.random.Generator(np.random.Philox(key=seed))
    n = table.shape[1]
    means = np.stack([table[:, generator.integers(n, size=n)].mean(1) for _ in range(resamples)])
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


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


def percent(accuracy: Accuracy) -> str:
    """ "71.40" """
    return f"{100 * accuracy.value:.2f}"


def interval(accuracy: Accuracy) -> str:
    """ "[67.3, 75.2]" """
    low, high = accuracy.interval
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def span(accuracy: Accuracy) -> str:
    """The interval where room is scarce: "67.3–75.2"."""
    low, high = accuracy.interval
    return f"{100 * low:.1f}–{100 * high:.1f}"

"""Accuracies with confidence intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# The 97.5 % quantile of the normal distribution.
_Z95 = 1.959963984540054


def wilson(k: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for a proportion, as fractions in [0, 1].

    Args:
        k: number of successes, 0 .. n; for a mean of fractions, their sum.
        n: number of trials, at least 1.

    Raises:
        ValueError: if k or n is out of range.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    # Not scipy.stats.binomtest: it refuses fractional successes, and differs from existing records in the last bits.
    _check_count(k, n)
    p, z2 = k / n, _Z95 * _Z95
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # The ends are exactly 0 and 1 where k is 0 or n; rounding could change their last bit.
    low = 0.0 if k == 0 else centre - half
    high = 1.0 if k == n else centre + half
    return low, high


def clopper_pearson(k: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval for a proportion, as fractions in [0, 1]; it holds for every n, however small.

    Args:
        k: number of successes, 0 .. n.
        n: number of trials, at least 1.

    Raises:
        ValueError: if k or n is out of range.

    Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the binomial".
    """
    # Imported here, because it takes a tenth of the time of torch's import and a run does not need it.
    from scipy.special import betaincinv

    _check_count(k, n)
    low = float(betaincinv(k, n - k + 1, 0.025)) if k else 0.0
    high = float(betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
    return low, high


def _check_count(k: float, n: int) -> None:
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"{k=}, {n=}: expected n >= 1 and 0 <= k <= n")


def mcnemar(b: int, c: int) -> float:
    """Two-sided p-value of the exact McNemar test that two classifiers are equally accurate on the same images.

    The test uses the binomial distribution of b out of b + c with probability 1/2.

    Args:
        b: number of images that only the first classifies correctly.
        c: number of images that only the second classifies correctly.

    Raises:
        ValueError: if a number is negative.

    McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages".
    """
    from scipy.special import bdtr

    if b < 0 or c < 0:
        raise ValueError(f"{b=}, {c=}: expected numbers of images")
    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))


def paired_difference(won: int, lost: int, n: int) -> tuple[float, float]:
    """95 % interval for the difference between two accuracies on the same images, as fractions.

    Args:
        won: number of images that only the first classifies correctly.
        lost: number of images that only the second classifies correctly.
        n: number of images.

    Returns:
        The ends of the interval for the accuracy of the first minus that of the second.

    Raises:
        ValueError: if a number is negative, or the numbers exceed n.

    Half an image is added to each of the four counts of images, and then Wald's interval is used: Agresti & Min 2005,
    "Simple improved confidence intervals for comparing matched proportions".
    """
    if min(won, lost) < 0 or won + lost > n or n < 1:
        raise ValueError(f"{won=}, {lost=}, {n=}: expected numbers of images of which at most n differ")
    total, difference, discordant = n + 2, won - lost, won + lost + 1
    half = _Z95 * math.sqrt(discordant - difference**2 / total)
    return max(-1.0, (difference - half) / total), min(1.0, (difference + half) / total)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); the latter is NaN for fewer than two values."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def bootstrap(values: ArrayLike, seed: int = 0, resamples: int = 1000) -> list[tuple[float, float]]:
    """95 % percentile bootstrap intervals of means over images.

    All figures use the same resamples of images, which preserves their correlation.

    Args:
        values: one row for each figure, shape (figures, n).
        seed: seed of the resampling.
        resamples: number of resamples.

    Returns:
        One (low, high) pair for each figure.

    Raises:
        ValueError: if there are no images, no resamples, or a value is not finite.

    Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 1 or resamples < 1 or not np.isfinite(table).all():
        raise ValueError(
            f"values of shape {table.shape}, {resamples=}: expected finite rows with at least one image"
        )
    # Not scipy.stats.bootstrap: it resamples differently, so intervals would differ from those in existing records.
    generator = np.random.Generator(np.random.Philox(key=seed))
    n = table.shape[1]
    means = np.stack([table[:, generator.integers(n, size=n)].mean(1) for _ in range(resamples)])
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


@dataclass(frozen=True)
class Accuracy:
    """The fraction of correctly classified images.

    Attributes:
        value: correct / n, in [0, 1].
        correct: number of correctly classified images.
        interval: 95 % Wilson interval, as fractions.
    """

    value: float
    correct: int
    interval: tuple[float, float]

    @classmethod
    def of(cls, correct: int, n: int) -> "Accuracy":
        """The accuracy of `correct` correct answers out of `n`."""
        return cls(correct / n, correct, wilson(correct, n))

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "Accuracy":
        """The accuracy in a record."""
        return cls(content["value"], content["correct"], tuple(content["interval"]))


def percent(accuracy: Accuracy) -> str:
    """Format an accuracy in percent: "71.40"."""
    return f"{100 * accuracy.value:.2f}"


def interval(accuracy: Accuracy) -> str:
    """Format the interval in percent: "[67.3, 75.2]"."""
    low, high = accuracy.interval
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def span(accuracy: Accuracy) -> str:
    """Format the interval in percent, in short form: "67.3–75.2"."""
    low, high = accuracy.interval
    return f"{100 * low:.1f}–{100 * high:.1f}"

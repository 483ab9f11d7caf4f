"""Accuracies with their uncertainty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    n = b + c
    log_half = n * math.log(0.5)
    tail = math.fsum(
        math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + log_half)
        for k in range(min(b, c) + 1)
    )
    return min(1.0, 2 * tail)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); the latter is NaN for fewer than two values."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def bootstrap_mean(values: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """A 95 % interval for the mean of independent `values` (n,): percentiles of the means of resamples.

    The same for the same values: the generator's seed is fixed.

    Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    generator = np.random.default_rng(0)
    counts = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=draws)
    low, high = np.percentile(counts @ values / len(values), (2.5, 97.5))
    return float(low), float(high)


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

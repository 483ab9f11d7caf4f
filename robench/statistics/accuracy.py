"""Accuracies with their uncertainty."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from robench.core.rng import Stream

_Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal
_DRAWS = 1 << 18  # images drawn at a time by the bootstrap, which bounds its memory


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


def bootstrap(
    values: ArrayLike,
    statistic: Callable[[NDArray], ArrayLike] = lambda means: means,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """A 95 % interval, by the percentile bootstrap, of a figure that is a function of means over images.

    The mean corruption error, say: one column an image and corruption, so that images are drawn whole and what their
    corruptions have in common is kept.

    Args:
        values: one row an image, (n,) or (n, ...); numbers or booleans.
        statistic: from the means over the images of every resample, (resamples, ...), to figures (resamples,).
        seed: decides every draw, by the counter-based stream.

    Raises:
        ValueError: when there are no images, no resamples, a value is not finite, or the statistic gives another shape.

    Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim < 1 or len(table) < 1 or resamples < 1 or not np.isfinite(table).all():
        raise ValueError(
            f"values of shape {table.shape}, {resamples=}: expected finite rows, at least one of each"
        )
    n, flat = len(table), table.reshape(len(table), -1)
    stream, means = Stream.of(seed, "bootstrap"), []
    for part in torch.arange(resamples).split(max(1, _DRAWS // n)):
        # 32 random bits times n, the high word: each image as likely as the next, to one part in 2**32 / n.
        drawn = (stream.bits(part, torch.zeros_like(part), 0, n) * n) >> 32
        places = drawn + n * torch.arange(len(part))[:, None]
        counts = np.bincount(places.flatten().numpy(), minlength=n * len(part)).reshape(len(part), n)
        means.append(counts @ flat / n)
    means = np.concatenate(means)
    figures = np.asarray(statistic(means.reshape(resamples, *table.shape[1:])), dtype=np.float64)
    if figures.shape != (resamples,):
        raise ValueError(f"the statistic gave shape {figures.shape}: expected ({resamples},)")
    low, high = np.quantile(figures, (0.025, 0.975))
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

"""A confidence sequence for the number of ones in a finite population of zeros and ones, sampled without replacement.

Waudby-Smith & Ramdas 2020, "Confidence sequences for sampling without replacement", arXiv 2006.04347, section 2.1: the
prior-posterior-ratio martingale with a beta-binomial prior on the number of ones.
"""

from dataclasses import dataclass

import numpy as np

# A beta prior whose mean is one in a hundred. Every prior gives valid intervals; this one gives narrow intervals where
# ones are rare.
PRIOR = (1.0, 100.0)


@dataclass(frozen=True)
class Sample:
    """A sample without replacement.

    Attributes:
        population: number of members.
        drawn: number of members drawn in random order.
        ones: number of ones among them.

    Raises:
        ValueError: if a number is out of range.
    """

    population: int
    drawn: int
    ones: int

    def __post_init__(self) -> None:
        if not 0 <= self.ones <= self.drawn <= self.population:
            raise ValueError(f"{self}: expected ones <= drawn <= population")

    def interval(self, alpha: float = 0.05, prior: tuple[float, float] = PRIOR) -> tuple[int, int]:
        """Bounds on the number of ones in the population.

        With probability 1 - alpha the bounds of all samples hold at once, as the sample grows. So it may grow until
        they are narrow enough.
        """
        from scipy.special import betaln  # a tenth of the time of torch's import, and only estimates need it

        a, b = prior
        ones = np.arange(self.ones, self.population - self.drawn + self.ones + 1)
        rest = self.population - self.drawn
        # The logarithm of prior over posterior probability of each number of ones.
        ratio = _log_binomial(self.population, ones) - _log_binomial(rest, ones - self.ones)
        ratio += betaln(a + self.ones, b + self.drawn - self.ones) - betaln(a, b)
        inside = ones[ratio < -np.log(alpha)]
        return int(inside[0]), int(inside[-1])

    def expected(self) -> int:
        """The number of ones in the population if the rest has the same share of ones, to the nearest integer."""
        return round(self.population * self.ones / self.drawn) if self.drawn else 0


def _log_binomial(n: int, k: np.ndarray) -> np.ndarray:
    from scipy.special import gammaln

    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)

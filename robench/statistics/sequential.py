"""A sequential test of whether a checkpoint is still as robust as its baseline, with as few attacks as possible.

Wald 1945, "Sequential tests of statistical hypotheses": the sequential probability ratio test of a Bernoulli rate.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """A test of the hypothesis "robust accuracy is unchanged" against "robust accuracy dropped by `margin`".

    Attributes:
        n: number of images in the baseline.
        held: number of images that are robust in the baseline.
        open: number of images left undecided by the clean pass and certificates, an upper bound on robust images.
        margin: smallest drop in robust accuracy to detect, a fraction of n.
        tolerance: drop that does not count, such as randomness of the attack and rounding, a fraction of n.
        false_alarm: probability of failing a checkpoint that lost at most `tolerance`.
        miss: probability of passing a checkpoint that lost at least `margin`.

    Raises:
        ValueError: if a value is out of range.
    """

    n: int
    held: int
    open: int
    margin: float = 0.03
    tolerance: float = 0.005
    false_alarm: float = 0.05
    miss: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance={self.tolerance}: expected at least 0 and below 1")
        if not self.tolerance < self.margin < 1:
            raise ValueError(f"margin={self.margin}: expected above {self.tolerance} and below 1")
        if not (0 < self.false_alarm < 0.5 and 0 < self.miss < 0.5):
            raise ValueError(
                f"false_alarm={self.false_alarm}, miss={self.miss}: expected above 0 and below 0.5"
            )
        if not 0 <= self.held <= self.n or not 0 <= self.open <= self.n:
            raise ValueError(f"{self.held=}, {self.open=}: expected 0 .. n = {self.n}")

    @property
    def sound(self) -> float:
        """The fraction of open images that is robust if robust accuracy dropped by `tolerance`."""
        return min((self.held - self.tolerance * self.n) / self.open, 1 - 1e-9)

    @property
    def weak(self) -> float:
        """The fraction of open images that is robust if robust accuracy dropped by `margin`."""
        return (self.held - self.margin * self.n) / self.open

    def decide(self, robust: int, fooled: int) -> bool | None:
        """Return True for as robust as the baseline, False for less robust, None for more attacks needed.

        Args:
            robust, fooled: outcomes on the open images attacked so far, which are drawn at random.
        """
        if self.held <= self.margin * self.n:
            return True  # too few images were robust for a drop of `margin`
        if self.open - fooled <= self.held - self.margin * self.n:
            return False  # even if all remaining images are robust
        if robust >= self.held - self.tolerance * self.n:
            return True  # even if no remaining image is robust
        if robust + fooled >= self.open:
            lost = (self.held - robust) / self.n
            return lost <= (self.tolerance + self.margin) / 2
        ratio = self._ratio(robust, fooled)
        if ratio >= math.log((1 - self.miss) / self.false_alarm):
            return False
        if ratio <= math.log(self.miss / (1 - self.false_alarm)):
            return True
        return None

    def needed(self, robust: int, fooled: int) -> int:
        """The number of consecutive robust images that would end the test; 0 if it has ended."""
        if self.decide(robust, fooled) is not None:
            return 0
        remaining = self.open - robust - fooled
        step = math.log(self.weak / self.sound)
        difference = math.log(self.miss / (1 - self.false_alarm)) - self._ratio(robust, fooled)
        return max(1, min(remaining, math.ceil(difference / step)))

    def _ratio(self, robust: int, fooled: int) -> float:
        """The log-likelihood ratio of `weak` to `sound` for the outcomes."""
        of_robust, of_fooled = math.log(self.weak / self.sound), math.log((1 - self.weak) / (1 - self.sound))
        return robust * of_robust + fooled * of_fooled

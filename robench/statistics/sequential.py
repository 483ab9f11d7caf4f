"""A sequential test: how few more attacks tell whether a checkpoint is still as robust as it was.

Wald 1945, "Sequential tests of statistical hypotheses": the sequential probability ratio test of a Bernoulli rate.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """A test of "the robust accuracy is what it was" against "it is lower by `margin`".

    Attributes:
        n: images of the baseline; held: of them robust in the baseline.
        open: images that clean pass and certificates leave undecided: at most so many can be robust.
        margin: the loss that is to be found, a fraction of n.
        tolerance: the loss that is no loss yet (chance of the attack, last bits), a fraction of n.
        false_alarm: probability of failing a checkpoint that lost `tolerance` or less.
        miss: probability of passing one that lost `margin` or more.
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
            said = f"false_alarm={self.false_alarm}, miss={self.miss}"
            raise ValueError(f"{said}: expected above 0 and below 0.5")
        if not 0 <= self.held <= self.n or not 0 <= self.open <= self.n:
            raise ValueError(f"{self.held=}, {self.open=}: expected 0 .. n = {self.n}")

    @property
    def sound(self) -> float:
        """The part of the open images that is robust when nothing but the tolerance was lost."""
        return min((self.held - self.tolerance * self.n) / self.open, 1 - 1e-9)

    @property
    def weak(self) -> float:
        """The part of the open images that is robust when the margin was lost."""
        return (self.held - self.margin * self.n) / self.open

    def decide(self, robust: int, fooled: int) -> bool | None:
        """True: as robust as it was. False: less robust. None: attack more.

        Args:
            robust, fooled: of the open images attacked so far, drawn at random.
        """
        if self.held <= self.margin * self.n:
            return True  # so little was robust that the margin cannot be lost
        if self.open - fooled <= self.held - self.margin * self.n:
            return False  # even if all the others are robust
        if robust >= self.held - self.tolerance * self.n:
            return True  # even if none of the others is
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
        """How many more robust images in a row would end the test, at least 1."""
        if self.decide(robust, fooled) is not None:
            return 0
        left = self.open - robust - fooled
        step = math.log(self.weak / self.sound)
        short = math.log(self.miss / (1 - self.false_alarm)) - self._ratio(robust, fooled)
        return max(1, min(left, math.ceil(short / step)))

    def _ratio(self, robust: int, fooled: int) -> float:
        """The logarithm of how much likelier "weak" makes what was seen than "sound" does."""
        return robust * math.log(self.weak / self.sound) + fooled * math.log(
            (1 - self.weak) / (1 - self.sound)
        )

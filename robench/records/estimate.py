"""Records of an estimate: a suite that was run on all images that a cheap suite fools, and on a sample of the others.

Robust accuracy is an estimate of what the suite would give on all images, with a 95 % interval for it. The sample is
the first part of a random order, which depends on the seed and the ids alone, so that anyone can check it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from robench.engine.outcome import ResultWarning
from robench.statistics.accuracy import Accuracy
from robench.statistics.sampling import Sample

FIELD = "estimate"
# The value of `fooled_by` for images that the suite was not run on.
NOT_ATTACKED = "not attacked"
# The column of samples.parquet with the position in the random order; OUTSIDE for images that are not sampled from.
ORDER, OUTSIDE = "order", -1
WARNING = "estimate"
SUFFIX = " (estimate)"


def random_order(ids: Sequence[int], seed: int) -> list[int]:
    """The position of each image in a random order that depends on the seed and the ids alone."""

    def place(index: int) -> bytes:
        return hashlib.sha256(f"estimate {seed} {ids[index]}".encode()).digest()

    position = [0] * len(ids)
    for rank, index in enumerate(sorted(range(len(ids)), key=place)):
        position[index] = rank
    return position


@dataclass(frozen=True)
class Estimate:
    """The counts that an estimate is made from.

    Attributes:
        n: number of images.
        certain: number of robust images among those that are not sampled from.
        sample: the images that survive the cheap suite, those attacked, and those fooled among them.
    """

    n: int
    certain: int
    sample: Sample

    @classmethod
    def of(cls, fooled_by: Sequence[str], order: Sequence[int]) -> "Estimate":
        """Count the rows of samples.parquet."""
        rows = list(zip(fooled_by, order, strict=True))
        certain = sum(by == "" for by, place in rows if place == OUTSIDE)
        inside = [by for by, place in rows if place != OUTSIDE]
        drawn = [by for by in inside if by != NOT_ATTACKED]
        return cls(len(rows), certain, Sample(len(inside), len(drawn), sum(by != "" for by in drawn)))

    @property
    def accuracy(self) -> Accuracy:
        """The estimated robust accuracy, and a 95 % interval for that of the suite on all images."""
        survivors = self.certain + self.sample.population
        low, high = self.sample.interval()
        correct = survivors - self.sample.expected()
        return Accuracy(correct / self.n, correct, ((survivors - high) / self.n, (survivors - low) / self.n))

    @property
    def half_width(self) -> float:
        """Half the width of the interval, in points."""
        low, high = self.accuracy.interval
        return 50 * (high - low)

    @property
    def at_most(self) -> Accuracy:
        """The share of images that no attack has fooled, with Wilson's interval: a bound without sampling."""
        return Accuracy.of(self.certain + self.sample.population - self.sample.ones, self.n)

    def figures(self) -> dict[str, Any]:
        """The field of the record."""
        return {
            "survivors": self.sample.population,
            "attacked": self.sample.drawn,
            "fooled": self.sample.ones,
            "at_most": asdict(self.at_most) | {"interval": list(self.at_most.interval)},
        }

    def warning(self, suite: str, screen: str) -> ResultWarning:
        """The warning that keeps the record from being ranked."""
        sample = self.sample
        return ResultWarning(
            WARNING,
            f"{suite} attacked {sample.drawn:,} of the {sample.population:,} images that survive {screen}, and fooled "
            f"{sample.ones:,} of them; the interval is for {suite} on all {self.n:,} images",
        )


def warnings_of(extra: Mapping[str, Any]) -> list[ResultWarning]:
    """The warning that keeps a record from being ranked, from its further fields; empty if it is no estimate."""
    if FIELD not in extra:
        return []
    figures = extra[FIELD]
    text = (
        f"the suite attacked {figures['attacked']:,} of the {figures['survivors']:,} images that survive a cheaper "
        "suite: robust accuracy is an estimate"
    )
    return [ResultWarning(WARNING, text)]


def bound(accuracy: Accuracy, extra: Mapping[str, Any]) -> Accuracy:
    """The upper bound that a record proves: its robust accuracy, or for an estimate the images that are not fooled."""
    if FIELD not in extra:
        return accuracy
    return Accuracy.read(extra[FIELD]["at_most"])

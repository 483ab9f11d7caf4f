"""The result of a training."""

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Attributes:
        path, sha256: the checkpoint and its digest, which the card records.
        n: number of test images; 0 if a purifier was not evaluated because its classifier has no weights yet.
        clean, robust: number of test images that are classified correctly, without an attack and under PGD-20 at
            `threat`.
        clean_accuracy, robust_accuracy: `clean` and `robust` as fractions of `n`.
        seed: seed of the training.
        seconds: duration of training and evaluation, including the time before interruptions.
    """

    path: Path
    sha256: str
    n: int
    clean: int
    robust: int
    threat: str
    seed: int
    seconds: float

    @property
    def clean_accuracy(self) -> float:
        return self.clean / self.n if self.n else math.nan

    @property
    def robust_accuracy(self) -> float:
        return self.robust / self.n if self.n else math.nan

    def __str__(self) -> str:
        accuracies = "not evaluated: the purifier's classifier has no weights"
        if self.n:
            accuracies = (
                f"clean {self.clean_accuracy:.1%}, PGD-20 at {self.threat} {self.robust_accuracy:.1%} "
                f"of {self.n} test images"
            )
        return f"{self.path}: {accuracies}; seed {self.seed}, {self.seconds:.0f} s, sha256 {self.sha256}"

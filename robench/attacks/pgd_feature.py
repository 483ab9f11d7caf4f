"""MIMIR: masked image modeling for mutual information-based adversarial robustness (arXiv 2312.04960).

The second of the paper's two adaptive attacks, PGD-feature: PGD that maximizes the distance between features.
"""

from dataclasses import dataclass

from torch import Tensor

from robench.attacks._base import OnFeatures, Problem, Rows
from robench.attacks._custom_objective import CustomObjective
from robench.attacks._feature_losses import distances, themselves
from robench.attacks.pgd import PGD, PGDState
from robench.core.registry import attacks


@attacks.register("pgd-feature")
@dataclass(frozen=True)
class PGDFeature(CustomObjective[PGDState]):
    """PGD on ||features(x') - features(x)||_2, without labels, as published; Linf.

    Args:
        steps: iterations, with one forward and one backward pass each and one more of both at the end; the clean pass
            is not counted.
        step_size: step size, in [0, 1] pixel values; 0 for eps / 4, the published 2/255 at 8/255.
    """

    layers = "last"

    steps: int = 100
    step_size: float = 0.0

    @property
    def norms(self) -> tuple[str, ...]:
        return ("Linf",)

    def base_attack(self, eps: float) -> PGD:
        return PGD("ce", steps=self.steps, step_size=self.step_size or eps / 4)

    def references(self, run: Rows, rows: Rows) -> Tensor:
        return themselves(run, rows)

    def objective(self, problem: Problem, rows: Rows, state: PGDState) -> OnFeatures:
        def value(logits: Tensor, rows: Rows, x: Tensor, features: tuple[Tensor, ...]) -> Tensor:
            assert rows.reference is not None
            return distances(features, rows.reference).sum(0)

        return OnFeatures(value, self.layers)

"""MIMIR: masked image modeling for mutual information-based adversarial robustness (arXiv 2312.04960).

The first of the paper's two adaptive attacks, PGD-MI: PGD that also maximizes the quantity that MIMIR minimizes.
"""

from dataclasses import dataclass

from torch import Tensor

from robench.attacks._base import OnFeatures, Problem, Rows
from robench.attacks._custom_objective import CustomObjective
from robench.attacks._feature_losses import information
from robench.attacks._losses import cross_entropy
from robench.attacks.pgd import PGD, PGDState
from robench.core.registry import attacks


@attacks.register("pgd-mi")
@dataclass(frozen=True)
class PGDMI(CustomObjective[PGDState]):
    """PGD on CE(f(x'), y) + weight * nHSIC(features(x'), x'), as published; Linf.

    The cross-entropy is a mean over the group, the default reduction (our reading of the official code); each row
    maximizes the group size times its share of it. The gradient flows through both arguments of the nHSIC. The random
    start is that of `pgd`, and so are the steps if `weight` is 0.

    At the published weight the second term is at most 1.5e-4, so the attack is close to plain PGD; `apgd-mi` is
    stronger.

    Args:
        weight: the paper's lambda.
        steps: iterations, with one forward and one backward pass each and one more of both at the end. Padding rows
            (see `robench.attacks._base`) and the clean pass are not counted.
        step_size: step size, in [0, 1] pixel values; 0 for eps / 4, the published 2/255 at 8/255.
        group: number of images over which the nHSIC is computed; the default is the published batch size.
    """

    layers = "last"

    weight: float = 1e-5
    steps: int = 100
    step_size: float = 0.0
    group: int = 16

    @property
    def norms(self) -> tuple[str, ...]:
        return ("Linf",)

    def base_attack(self, eps: float) -> PGD:
        return PGD("ce", steps=self.steps, step_size=self.step_size or eps / 4)

    def objective(self, problem: Problem, rows: Rows, state: PGDState) -> OnFeatures:
        weight = self.weight * problem.group

        def value(logits: Tensor, rows: Rows, x: Tensor, features: tuple[Tensor, ...]) -> Tensor:
            return cross_entropy(logits, rows.y) + weight * information(x, features, problem.group)

        return OnFeatures(value, self.layers)

"""PGD-MI of MIMIR's paper (arXiv 2312.04960) with the adaptive steps of APGD (Croce & Hein 2020, arXiv 2003.01690).

The combination is new here: an adaptive attack by an attacker who knows how the defense was trained.
"""

from dataclasses import dataclass

from torch import Tensor

from robench.attacks._base import GradientAttack, OnFeatures, Problem, Rows, check_share
from robench.attacks._custom_objective import CustomObjective
from robench.attacks._feature_losses import information
from robench.attacks._losses import check_loss, objective
from robench.attacks.apgd import APGD, APGDState
from robench.core.registry import attacks


@attacks.register("apgd-mi")
@dataclass(frozen=True)
class APGDMI(CustomObjective[APGDState], GradientAttack[APGDState]):
    """APGD on loss(f(x'), y) + weight * nHSIC(features(x'), x'), in Linf and L2.

    Each row maximizes its loss plus weight * group * (its share of the nHSIC), so `weight` has the same meaning as in
    `pgd-mi`. At 0 the steps are those of `apgd`.

    Args:
        weight: the paper's lambda; a negative value reduces the dependence of the features on the image.
        layers: "last" for the features of the last block, "all" for the mean nHSIC over all blocks.
        steps: iterations, with one forward and one backward pass each and one more of both at the start. Padding rows
            (see `robench.attacks._base`) and the clean pass are not counted.
        rho: a checkpoint halves the step size if fewer than this fraction of steps increased the loss.
        group: number of images over which the nHSIC is computed.
    """

    weight: float = 0.1
    layers: str = "last"
    rho: float = 0.75
    group: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("rho", self.rho)
        check_loss(self.loss)

    def base_attack(self, eps: float) -> APGD:
        return APGD(self.loss, self.steps, self.targets, self.restarts, self.eot, self.rho)

    def objective(self, problem: Problem, rows: Rows, state: APGDState) -> OnFeatures:
        loss = objective(self.loss, state.target if self.targets else None)
        weight = self.weight * problem.group

        def value(logits: Tensor, rows: Rows, x: Tensor, features: tuple[Tensor, ...]) -> Tensor:
            return loss(logits, rows) + weight * information(x, features, problem.group)

        return OnFeatures(value, self.layers)

"""PGD-feature of MIMIR's paper (arXiv 2312.04960) with APGD's adaptive steps (Croce & Hein 2020, arXiv 2003.01690).

The combination is new here. Its targeted form moves the features of an image to those of an image of another class, as
in "Adversarial manipulation of deep representations" (Sabour et al. 2016, arXiv 1511.05122).
"""

from dataclasses import dataclass

from torch import Tensor

from robench.attacks._base import GradientAttack, OnFeatures, Problem, Rows, check_share
from robench.attacks._custom_objective import CustomObjective
from robench.attacks._feature_losses import nearest_other_class, relative_distance, themselves
from robench.attacks._losses import check_loss, objective
from robench.attacks.apgd import APGD, APGDState
from robench.core.registry import attacks


@attacks.register("apgd-feature")
@dataclass(frozen=True)
class APGDFeature(CustomObjective[APGDState], GradientAttack[APGDState]):
    """APGD on the relative distance between features and those of a clean image, in Linf and L2.

    The untargeted form maximizes |features(x') - features(x)| / |features(x)|. The targeted form minimizes the same
    distance to an image of another class in place of x. A loss on the logits may be added; `weight` then weighs the
    distance.

    The reference image of the targeted form is the nearest one in pixels among the attacked images that the surrogate
    assigns to the target class. Results therefore depend on which images are attacked.

    Args:
        loss: "" for the distance alone, or "ce", "dlr" or "margin".
        weight: weight of the distance if a loss is added; at 0 the steps are those of `apgd`.
        layers: "last" for the features of the last block, "all" for the mean over all blocks.
        steps: iterations, with one forward and one backward pass each and one more of both at the start; the clean
            pass is not counted.
        targets: number of target classes, most likely first; 0 to move away from the features of the clean image.
        restarts: number of random starts, for each target if targeted; each then uses the next nearest image.
        rho: a checkpoint halves the step size if fewer than this fraction of steps increased the loss.
    """

    loss: str = ""
    weight: float = 1.0
    layers: str = "last"
    rho: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("rho", self.rho)
        if self.loss:
            check_loss(self.loss)
        elif self.weight != 1.0:
            raise ValueError(f"weight={self.weight!r}: weighs the distance against a loss: set loss too")

    def base_attack(self, eps: float) -> APGD:
        return APGD(self.loss or "ce", self.steps, self.targets, self.restarts, self.eot, self.rho)

    def references(self, run: Rows, rows: Rows) -> Tensor:
        if self.targets:
            return nearest_other_class(run, rows, self.target(rows), self.restarts)
        return themselves(run, rows)

    def objective(self, problem: Problem, rows: Rows, state: APGDState) -> OnFeatures:
        loss = objective(self.loss, state.target if self.targets else None) if self.loss else None
        weight = (-1 if self.targets else 1) * (self.weight if loss else 1.0)

        def value(logits: Tensor, rows: Rows, x: Tensor, features: tuple[Tensor, ...]) -> Tensor:
            assert rows.reference is not None
            moved = weight * relative_distance(features, rows.reference)
            return moved if loss is None else loss(logits, rows) + moved

        return OnFeatures(value, self.layers)

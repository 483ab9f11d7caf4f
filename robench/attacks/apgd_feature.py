"""PGD-feature of MIMIR's paper (arXiv 2312.04960) with APGD's adaptive steps (Croce & Hein 2020, arXiv 2003.01690).

The combination is ours. Its targeted form leads an image's features to those of an image of another class, as
"Adversarial manipulation of deep representations" (Sabour et al. 2016, arXiv 1511.05122) does.
"""

from dataclasses import dataclass

from torch import Tensor

from robench.attacks._base import GradientAttack, OnFeatures, Problem, Rows
from robench.attacks._custom_objective import CustomObjective
from robench.attacks._feature_losses import nearest_other_class, relative_distance, themselves
from robench.attacks._losses import check_loss, objective
from robench.attacks.apgd import APGD, APGDState
from robench.core.registry import attacks


@attacks.register("apgd-feature")
@dataclass(frozen=True)
class APGDFeature(CustomObjective[APGDState], GradientAttack[APGDState]):
    """APGD on the relative distance of the features from a clean image's, in Linf and L2.

    Untargeted it maximises |features(x') - features(x)| / |features(x)|, targeted it minimises the same for an
    image of another class in place of x. A loss may be added; `weight` is the distance's beside it.

    The image aimed at is of the attacked ones that which the surrogate takes for the target class and that is
    nearest in pixels, so it depends on which images are attacked, as a group does.

    Args:
        loss: "" for the distance alone, or "ce", "dlr" or "margin".
        weight: of the distance, where a loss stands beside it; at 0 the steps are `apgd`'s.
        layers: "last" for the last block's features, "all" for the mean over every block's.
        steps: iterations; one forward and one backward pass each, and one more at the start, the clean pass
            apart.
        targets: 0 to go away from the image's own features, else how many classes are aimed at, the most
            likely first.
        restarts: random starts (a target); targeted, each aims at the next nearest image.
        rho: share of rising steps under which a checkpoint halves the step size.
    """

    loss: str = ""
    weight: float = 1.0
    layers: str = "last"
    rho: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss:
            check_loss(self.loss)
        elif self.weight != 1.0:
            raise ValueError(f"weight={self.weight!r}: weighs the distance beside a loss: give a loss too")

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

"""Towards deep learning models resistant to adversarial attacks (Madry et al. 2018, arXiv 1706.06083)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from robench.training.adversarial import pgd
from robench.training.methods._base import Budget, Method, logits, methods


@methods.register("pgd-at")
@dataclass(frozen=True)
class PGDAT(Method):
    """The cross entropy on images after PGD from a uniform random start (eq. 2.1); 0 steps train on clean images.

    Args:
        best: train on the iterate with the highest loss of each image instead of the last one, as in ARES, the code of
            MIMIR's Swins.
    """

    fewest_steps: ClassVar[int] = 0
    mixes_labels: ClassVar[bool] = True

    best: bool = False

    def loss(self, learners: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
        if budget.steps:
            x = pgd(learners, x, y, budget.eps, budget.step_size, budget.steps, self.best)
        return F.cross_entropy(logits(learners, x), y, label_smoothing=budget.label_smoothing)

"""Fast is better than free: revisiting adversarial training (Wong et al. 2020, arXiv 2001.03994)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from robench.training.adversarial import pgd
from robench.training.methods._base import Budget, Method, logits, methods


@methods.register("fast-at")
@dataclass(frozen=True)
class FastAT(Method):
    """The cross entropy on images after one signed gradient step from a uniform random start (Alg. 3).

    The recipe sets the step size, which is 1.25 times the radius in the paper; its `steps` must be 1. The paper stops
    training when the training accuracy under PGD collapses ("catastrophic overfitting"). Here all epochs are trained,
    and the evaluation shows a collapse.
    """

    most_steps: ClassVar[float] = 1

    def loss(self, learners: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
        x_adv = pgd(learners, x, y, budget.eps, budget.step_size, budget.steps)
        return F.cross_entropy(logits(learners, x_adv), y, label_smoothing=budget.label_smoothing)

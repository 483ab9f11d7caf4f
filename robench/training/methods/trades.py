"""Theoretically principled trade-off between robustness and accuracy (Zhang et al. 2019, arXiv 1901.08573)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.training.adversarial import ascend, attacked, normal_start
from robench.training.methods._base import Budget, Method, kl, logits, methods


def kl_ascent(model: nn.Module, x: Tensor, budget: Budget) -> Tensor:
    """Maximize KL(f(x) || f(x')) over the ball, with the model in evaluation mode (the inner loop of Alg. 1).

    It starts from normal noise with standard deviation 0.001, because the gradient is zero at x itself. The result is
    detached.
    """
    with attacked(model):
        with torch.no_grad():
            clean = logits(model, x)

        def objective(x_adv: Tensor) -> Tensor:
            return kl(clean, logits(model, x_adv)).sum()

        return ascend(x, normal_start(x), objective, budget.eps, budget.step_size, budget.steps)


@methods.register("trades")
@dataclass(frozen=True)
class TRADES(Method):
    """CE(f(x), y) + beta KL(f(x) || f(x')), where x' maximizes the KL divergence over the ball.

    Args:
        beta: the paper's 1 / lambda; 6 in the paper's most robust model on CIFAR-10.
    """

    beta: float = 6.0

    def loss(self, learners: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
        x_adv = kl_ascent(learners, x, budget)
        clean = logits(learners, x)
        natural = F.cross_entropy(clean, y, label_smoothing=budget.label_smoothing)
        return natural + self.beta * kl(clean, logits(learners, x_adv)).mean()

"""Improving adversarial robustness requires revisiting misclassified examples (Wang et al., ICLR 2020)."""

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from robench.training.adversarial import ascend, attacked, normal_start
from robench.training.methods._base import Budget, Method, kl, logits, methods


def boosted_cross_entropy(adversarial: Tensor, y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log p_y - log(1 - max over k != y of p_k), the mean over the rows of logits (N, K).

    The second term is computed as the log of the sum of all other probabilities, which is accurate even if the
    probability of the wrong class is close to 1.
    """
    wrong = adversarial.scatter(1, y[:, None], -math.inf).argmax(1, keepdim=True)
    others = adversarial.scatter(1, wrong, -math.inf).logsumexp(1)
    margin = adversarial.logsumexp(1) - others
    return F.cross_entropy(adversarial, y, label_smoothing=label_smoothing) + margin.mean()


@methods.register("mart")
@dataclass(frozen=True)
class MART(Method):
    """BCE(f(x'), y) + weight KL(f(x) || f(x')) (1 - f_y(x)), with x' from PGD on the cross entropy.

    The factor 1 - f_y(x) gives misclassified images more weight. As in the code attributed to the authors, the
    gradient flows through this factor, and x' starts from normal noise with standard deviation 0.001.

    Args:
        weight: the paper's lambda; 6 in the paper.
    """

    weight: float = 6.0

    def loss(self, learners: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
        def objective(x_adv: Tensor) -> Tensor:
            return F.cross_entropy(logits(learners, x_adv), y, reduction="sum")

        with attacked(learners):
            x_adv = ascend(x, normal_start(x), objective, budget.eps, budget.step_size, budget.steps)
        clean, adversarial = logits(learners, x), logits(learners, x_adv)
        uncertainty = 1 - clean.softmax(1).gather(1, y[:, None])[:, 0]
        bce = boosted_cross_entropy(adversarial, y, budget.label_smoothing)
        return bce + self.weight * (kl(clean, adversarial) * uncertainty).mean()

"""Adversarial training with Auto-PGD as the inner attack.

Auto-PGD is Croce & Hein 2020, arXiv 2003.01690, Alg. 1. Singh et al., "Revisiting Adversarial Training for ImageNet",
arXiv 2303.01870, train with a few steps of it, and MIMIR's 300-epoch models with 2 steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.attacks._base import Answer, Problem, Rows
from robench.attacks.apgd import APGD
from robench.core.rng import Stream
from robench.threats.threat import Threat
from robench.training.adversarial import attacked
from robench.training.draws import positions
from robench.training.methods._base import Budget, Method, logits, methods


def apgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Run the APGD of `robench.attacks` on the cross entropy.

    It takes `steps` gradients and one additional forward pass.

    Returns:
        The point with the highest cross entropy among a random start and `steps` iterates, detached, within `eps`
        of `x` and [0, 1].
    """
    attack = APGD(loss="ce", steps=steps)
    stream = Stream.of(int(torch.randint(2**62, ())), "apgd-at")
    rank = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    rows = Rows(
        x=x,
        y=y,
        clean_logits=x.new_zeros(len(x), 2),  # only targeted attacks use them
        sample=positions(len(x), x.device),
        rank=rank,
        active=rank == 0,
    )
    problem = Problem(Threat("Linf", eps, str(eps)), 2, stream)
    with attacked(model):
        state = attack.init(problem, rows)
        for step in range(steps + 1):
            points = attack.ask(problem, rows, state).x.detach()
            answer = _answer(model, points, y, gradient=step < steps)
            state = attack.tell(problem, rows, state, answer)
    return attack.best(state)


def _answer(model: nn.Module, x: Tensor, y: Tensor, gradient: bool) -> Answer:
    with torch.set_grad_enabled(gradient):
        x.requires_grad_(gradient)
        output = logits(model, x)
        loss = F.cross_entropy(output, y, reduction="none")
    grad = torch.autograd.grad(loss.sum(), x)[0] if gradient else torch.zeros_like(x)
    return Answer(x.detach(), output.detach(), loss.detach(), grad)


@methods.register("apgd-at")
@dataclass(frozen=True)
class APGDAT(Method):
    """The cross entropy on adversarial images of APGD with the recipe's `steps`; APGD sets its step size itself."""

    def loss(self, learners: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
        x_adv = apgd(learners, x, y, budget.eps, budget.steps)
        return F.cross_entropy(logits(learners, x_adv), y, label_smoothing=budget.label_smoothing)

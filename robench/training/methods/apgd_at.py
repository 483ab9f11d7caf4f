"""Adversarial training whose inner maximiser is Auto-PGD.

Croce & Hein 2020, arXiv 2003.01690, Alg. 1; a few steps of it train the ImageNet models of Singh et al.,
"Revisiting Adversarial Training for ImageNet", arXiv 2303.01870, and 2 steps those of MIMIR's 300 epochs.
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
from robench.training.methods._base import Budget, Method, logits, methods


def apgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """The point of highest cross entropy among a random start and `steps` iterates of the suite's own APGD.

    Costs `steps` gradients and one forward pass more. Detached, within `eps` of `x` and inside [0, 1].
    """
    attack = APGD(loss="ce", steps=steps)
    stream = Stream.of(int(torch.randint(2**62, ())), "apgd-at")
    count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    rows = Rows(
        x=x,
        y=y,
        clean_logits=x.new_zeros(len(x), 2),  # asked for by targeted attacks alone
        sample=torch.arange(len(x), device=x.device),
        rank=count,
        active=count == 0,
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
    """The cross entropy on the best images that APGD of the recipe's `steps` finds; its step size is its own."""

    def loss(self, learners: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
        x_adv = apgd(learners, x, y, budget.eps, budget.steps)
        return F.cross_entropy(logits(learners, x_adv), y, label_smoothing=budget.label_smoothing)

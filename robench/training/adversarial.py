"""Inner attacks of adversarial training in Linf.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv 1706.06083, eq. 2.1, with
the settings of MIMIR's fine-tuning (arXiv 2312.04960). Evaluations use `robench.attacks` instead.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def attacked(model: nn.Module) -> Iterator[None]:
    """Set the model to evaluation mode and disable gradients of its weights inside the block."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:  # unused gradients of the weights would take a third of the time
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:  # parts may be in evaluation mode, such as those that a probe freezes
            module.training = True


def uniform_start(x: Tensor, eps: float) -> Tensor:
    """Add uniform noise in [-eps, eps) to every pixel; the result is not clipped to [0, 1]."""
    return x + torch.empty_like(x).uniform_(-eps, eps)


def normal_start(x: Tensor, deviation: float = 0.001) -> Tensor:
    """Add normal noise to every pixel, as TRADES' code and code based on it do."""
    return x + deviation * torch.randn_like(x)


def ascend(
    x: Tensor, start: Tensor, objective: Callable[[Tensor], Tensor], eps: float, step_size: float, steps: int
) -> Tensor:
    """Maximize `objective` by projected signed gradient ascent.

    Args:
        x: (N, 3, H, W) in [0, 1], the clean images.
        start: (N, 3, H, W), the initial points, which are projected first.
        objective: function of the images, summed over the rows.
        eps: radius in Linf.

    Returns:
        The last iterate, within `eps` of `x` and [0, 1], detached.
    """
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    x_adv = torch.min(torch.max(start, low), high)
    for _ in range(steps):
        x_adv.requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(x_adv), x_adv)
        x_adv = torch.min(torch.max(x_adv.detach() + step_size * gradient.sign(), low), high)
    return x_adv


def pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, step_size: float, steps: int, best: bool = False
) -> Tensor:
    """Maximize the cross entropy by PGD in Linf, from a uniform random start.

    Args:
        x: (N, 3, H, W) in [0, 1].
        y: labels, (N,), or probabilities, (N, K).
        eps: radius in Linf.
        best: return the iterate with the highest cross entropy of each image, the start included, instead of the last;
            this takes one more forward pass.

    Returns:
        An iterate within `eps` of `x` and [0, 1].
    """
    best_x, best_loss = x, x.new_full((len(x),), -torch.inf)

    def losses(x_adv: Tensor) -> Tensor:
        nonlocal best_x, best_loss
        loss = F.cross_entropy(model(x_adv), y, reduction="none")
        if best:
            higher = loss.detach() > best_loss
            best_loss = torch.where(higher, loss.detach().to(best_loss), best_loss)
            best_x = torch.where(higher.view(-1, 1, 1, 1), x_adv.detach(), best_x)
        return loss

    def objective(x_adv: Tensor) -> Tensor:
        return losses(x_adv).sum() if best else F.cross_entropy(model(x_adv), y, reduction="sum")

    with attacked(model):
        last = ascend(x, uniform_start(x, eps), objective, eps, step_size, steps)
        if not best:
            return last
        with torch.no_grad():
            losses(last)
        return best_x


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Count the images that the model classifies correctly."""
    return int((model(x).argmax(1) == y).sum())

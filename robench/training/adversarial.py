"""Adversarial training's own PGD and loss.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv 1706.06083, eq. 2.1, with
the settings of MIMIR's fine-tuning (arXiv 2312.04960). Evaluations use `robench.attacks`, not this.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, step_size: float, steps: int) -> Tensor:
    """Signed gradient ascent on the cross entropy from a uniform random start; the last iterate.

    Args:
        x: (N, 3, H, W) in [0, 1].
        eps: radius in Linf.

    Returns:
        Images within `eps` of `x` and inside [0, 1].
    """
    was_training = model.training
    model.eval()
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:  # a gradient of the weights would cost a third of the time, for nothing
        parameter.requires_grad_(False)
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    x_adv = torch.min(torch.max(x + torch.empty_like(x).uniform_(-eps, eps), low), high)
    for _ in range(steps):
        x_adv.requires_grad_(True)
        loss = F.cross_entropy(model(x_adv), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = torch.min(torch.max(x_adv.detach() + step_size * gradient.sign(), low), high)
    for parameter in wanted:
        parameter.requires_grad_(True)
    model.train(was_training)
    return x_adv


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """How many images the model classifies right."""
    return int((model(x).argmax(1) == y).sum())

"""MIMIR's pre-training: reconstruct clean pixels from a few adversarial ones with a penalty on mutual information.

Xu et al., "MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness", arXiv
2312.04960.
"""

import torch
from torch import Tensor

from robench.core.hsic import nhsic
from robench.training.mae import MaskedAutoencoder


def inner_attack(model: MaskedAutoencoder, x: Tensor, eps: float, step_size: float) -> Tensor:
    """One signed step from a random start, within Linf `eps` and [0, 1], that makes the images hard to guess.

    It ascends the reconstruction loss whose target is the adversarial image itself, under a fresh random mask
    and in evaluation mode, with no penalty in it, as the official code does. The gradient flows through both
    the visible pixels and the target.

    Args:
        x: (N, 3, H, W) in [0, 1].
    """
    was_training = model.training
    model.eval()
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    start = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1).requires_grad_(True)
    loss, _ = model(start, start, model.draw(len(x), x.device))
    (gradient,) = torch.autograd.grad(loss, start)
    for parameter in wanted:
        parameter.requires_grad_(True)
    model.train(was_training)
    moved = start.detach() + step_size * gradient.sign()
    return torch.min(torch.max(moved, x - eps), x + eps).clamp(0, 1)


def pretraining_loss(
    model: MaskedAutoencoder, x: Tensor, eps: float, step_size: float, mi_weight: float
) -> Tensor:
    """Loss of reconstructing the clean images from adversarial ones, plus `mi_weight` times nHSIC(latent, adversarial).

    Args:
        x: (N, 3, H, W) in [0, 1], clean.
        eps: radius of the inner attack; 0 for plain MAE.
        mi_weight: the paper's lambda; 0 leaves the penalty out.
    """
    x_adv = inner_attack(model, x, eps, step_size) if eps > 0 else x
    loss, latent = model(x_adv, x, model.draw(len(x), x.device))
    return loss + mi_weight * nhsic(latent, x_adv) if mi_weight > 0 else loss

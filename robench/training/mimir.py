"""MIMIR's pre-training: clean pixels are reconstructed from adversarial ones, with a penalty on mutual information.

Xu et al., "MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness", arXiv
2312.04960.
"""

import torch
from torch import Tensor

from robench.core.hsic import nhsic
from robench.training.adversarial import attacked, uniform_start
from robench.training.mae import MaskedAutoencoder
from robench.training.spark import UNetAutoencoder

Autoencoder = MaskedAutoencoder | UNetAutoencoder


def inner_attack(model: Autoencoder, x: Tensor, eps: float, step_size: float) -> Tensor:
    """One signed gradient step from a random start, within Linf `eps` and [0, 1], that raises the reconstruction loss.

    As in the official code, the target of the reconstruction is the adversarial image itself, the mask is drawn
    separately, the model is in evaluation mode, and the mutual information penalty is left out. The gradient flows
    through both the visible pixels and the target.

    Args:
        x: (N, 3, H, W) in [0, 1].
    """
    start = uniform_start(x, eps).clamp(0, 1).requires_grad_(True)
    with attacked(model):
        loss, _ = model(start, start, model.draw(len(x), x.device))
        (gradient,) = torch.autograd.grad(loss, start)
    x_adv = start.detach() + step_size * gradient.sign()
    return torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)


def pretraining_loss(
    model: Autoencoder, x: Tensor, eps: float, step_size: float, mi_weight: float, group: int = 0
) -> Tensor:
    """Loss of reconstructing clean images from adversarial ones, plus `mi_weight` times nHSIC(latent, x_adv).

    Args:
        x: (N, 3, H, W) in [0, 1], clean.
        eps: radius of the inner attack; 0 for plain MAE.
        mi_weight: the paper's lambda; 0 for no penalty.
        group: number of consecutive rows whose nHSIC is one penalty; the penalties are averaged over the rows. 0 for
            all rows. nHSIC grows with the number of rows; in the official code they are those of one GPU.
    """
    x_adv = inner_attack(model, x, eps, step_size) if eps > 0 else x
    loss, latent = model(x_adv, x, model.draw(len(x), x.device))
    return loss + mi_weight * grouped_nhsic(latent, x_adv, group) if mi_weight > 0 else loss


def grouped_nhsic(latent: Tensor, x: Tensor, group: int) -> Tensor:
    """The mean over the rows of the nHSIC of their group; a group of one row counts as 0."""
    if not group or group >= len(x):
        return nhsic(latent, x)
    pairs = zip(latent.split(group), x.split(group), strict=True)
    return torch.stack([nhsic(z, rows) * len(rows) for z, rows in pairs if len(rows) > 1]).sum() / len(x)

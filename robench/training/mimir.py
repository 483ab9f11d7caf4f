"""MIMIR's pre-training: clean pixels are reconstructed from adversarial ones, with a penalty on mutual information.

Xu et al., "MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness", arXiv
2312.04960.
"""

import torch
from torch import Tensor

from robench.core.hsic import nhsic
from robench.training.adversarial import attacked, uniform_start
from robench.training.mae import MaskedAutoencoder


def inner_attack(model: MaskedAutoencoder, x: Tensor, eps: float, step_size: float) -> Tensor:
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
    model: MaskedAutoencoder, x: Tensor, eps: float, step_size: float, mi_weight: float
) -> Tensor:
    """Loss of reconstructing clean images from adversarial ones, plus `mi_weight` times nHSIC(latent, x_adv).

    Args:
        x: (N, 3, H, W) in [0, 1], clean.
        eps: radius of the inner attack; 0 for plain MAE.
        mi_weight: the paper's lambda; 0 for no penalty.
    """
    x_adv = inner_attack(model, x, eps, step_size) if eps > 0 else x
    loss, latent = model(x_adv, x, model.draw(len(x), x.device))
    return loss + mi_weight * nhsic(latent, x_adv) if mi_weight > 0 else loss

"""Denoising Diffusion Probabilistic Models: Ho et al. 2020, arXiv 2006.11239."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.defenses._base import Purifier
from robench.defenses.diffusion import DiffPure
from robench.training.purifier_training._base import PurifierTraining, purifier_trainings


@purifier_trainings.register("ddpm")
@dataclass(frozen=True)
class Ddpm(PurifierTraining):
    """Prediction of the noise in x_t, equation 14: times are uniform over the schedule and have equal weights."""

    def learner(self, purifier: Purifier) -> nn.Module:
        if not isinstance(purifier, DiffPure):
            raise ValueError(f"expected a diffpure purifier, got {type(purifier).__name__}")
        return purifier

    def loss(self, learner: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(learner, DiffPure)
        t = torch.randint(1, learner.schedule.length + 1, (len(x),), device=x.device)
        noise = torch.randn_like(x)
        noisy = learner.schedule.diffuse(2 * x - 1, t, noise)
        return (learner.predict_noise(noisy, t).float() - noise).square().mean()

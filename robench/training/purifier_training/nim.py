"""Noisy and masked image modeling: clean patches are predicted from noisy images, or from the visible patches.

You et al., "Beyond Pretrained Features: Noisy Image Modeling Provides Adversarial Defense", arXiv 2302.01056
(NIM, as far as the official code is known); He et al., "Masked Autoencoders Are Scalable Vision Learners",
arXiv 2111.06377 (MIM).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.core.fields import ABOVE_ZERO, BETWEEN
from robench.defenses._base import Purifier
from robench.defenses.de3 import DE3, Seen, statistics_of
from robench.training.purifier_training._base import PurifierTraining, purifier_trainings


@purifier_trainings.register("nim")
@dataclass(frozen=True)
class NIM(PurifierTraining):
    """The squared error of the normalized pixels of every clean patch, predicted under Gaussian noise.

    The standard deviation of the noise is drawn for each image, in units of 1/255. Our additions: a network with a
    statistics head also predicts the mean and standard deviation of the patches, by a squared error of equal weight,
    and the bounds of the uniform distribution.

    Args:
        sigma: distribution of the noise's standard deviation: "gamma" for Gamma(shape, scale), with mean 75 and
            standard deviation 15 for the paper's main model; "fixed" for `level`; "uniform" between `low` and `high`.
        shape, scale, level, low, high: parameters of these distributions.
    """

    sigma: Literal["gamma", "fixed", "uniform"] = "gamma"
    shape: Annotated[float, ABOVE_ZERO] = 25.0
    scale: Annotated[float, ABOVE_ZERO] = 3.0
    level: float = 75.0
    low: float = 0.0
    high: float = 150.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise ValueError(f"low={self.low} and high={self.high}: expected low to be at most high")

    def learner(self, purifier: Purifier) -> nn.Module:
        return _check_noise("gaussian", purifier)

    def draw(self, n: int, device: torch.device) -> Tensor:
        """Draw the noise's standard deviation for each of `n` images, (n,), in units of 1/255."""
        return _DISTRIBUTIONS[self.sigma](self, torch.empty(n, device=device))

    def loss(self, learner: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(learner, DE3)
        seen = learner.corrupt(x, self.draw(len(x), x.device))
        return errors(learner, x, seen).mean()


@purifier_trainings.register("mim")
@dataclass(frozen=True)
class MIM(PurifierTraining):
    """The squared error of the normalized pixels of the hidden patches: MAE's pre-training.

    Args:
        mask_ratio: fraction of patches hidden.
    """

    mask_ratio: Annotated[float, BETWEEN] = 0.75

    def learner(self, purifier: Purifier) -> nn.Module:
        return _check_noise("mask", purifier)

    def loss(self, learner: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(learner, DE3)
        seen = learner.corrupt(x, 100 * self.mask_ratio)
        assert seen.order is not None
        return errors(learner, x, seen).gather(1, seen.order[:, seen.visible :]).mean()


def errors(purifier: DE3, x: Tensor, seen: Seen) -> Tensor:
    """The squared error of each patch's normalized pixels, plus that of the statistics head, if any; (N, patches).

    Args:
        x: (N, 3, H, W) in [0, 1], clean.
        seen: the purifier's noisy or masked input.
    """
    tokens = purifier.tokens(seen)
    pixels = purifier.pixels(x)
    mean, deviation = statistics_of(pixels)
    error = F.mse_loss(purifier.decoder_pred(tokens), (pixels - mean) / deviation, reduction="none").mean(2)
    if purifier.decoder_statistics is None:
        return error
    statistics = torch.cat(purifier.predicted(tokens), 2)
    return error + F.mse_loss(statistics, torch.cat([mean, deviation], 2), reduction="none").mean(2)


def _gamma(method: NIM, empty: Tensor) -> Tensor:
    gamma = torch.distributions.Gamma(torch.tensor(method.shape), torch.tensor(1 / method.scale))
    return gamma.sample(empty.shape).to(empty.device)


_DISTRIBUTIONS: dict[str, Callable[[NIM, Tensor], Tensor]] = {
    "gamma": _gamma,
    "fixed": lambda method, empty: empty.fill_(method.level),
    "uniform": lambda method, empty: empty.uniform_(method.low, method.high),
}


def _check_noise(noise: str, purifier: Purifier) -> DE3:
    if not isinstance(purifier, DE3) or purifier.noise != noise:
        raise ValueError(f'expected a purifier de3(noise="{noise}", ...)')
    return purifier

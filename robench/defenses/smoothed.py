"""Gaussian noise in front of a classifier, whose majority vote randomized smoothing certifies."""

import math

from torch import Tensor

from robench.core import registry
from robench.core.rng import normal_like
from robench.defenses._base import Purifier


@registry.purifiers.register("smoothed")
class Smoothed(Purifier):
    """Adds Gaussian noise to the image, so that `robench certify` can bound the robustness of the majority vote.

    Cohen et al. 2019, arXiv 1902.02918: the smoothed classifier is the majority vote of the classifier behind this
    purifier over draws of the noise. A classifier that was not trained on noisy images loses accuracy.

    Args:
        sigma: standard deviation of the noise, in units of the images' range [0, 1]; above 0.
        clip: clip the noisy image to [0, 1]. The paper's classifiers take unclipped images; the certificate holds
            either way.

    Raises:
        ValueError: for a sigma that is not finite and above 0.
    """

    stochastic = True

    def __init__(self, sigma: float = 0.25, clip: bool = False):
        super().__init__()
        if not 0 < sigma < math.inf:
            raise ValueError(f"{sigma=}: expected a finite number above 0")
        self.sigma, self.clip = float(sigma), clip

    def forward(self, x: Tensor) -> Tensor:
        """Noisy images (N, C, H, W), outside [0, 1] unless they are clipped."""
        noisy = x + self.sigma * normal_like(x)
        return noisy.clamp(0, 1) if self.clip else noisy

    def input_noise(self) -> float:
        """See `Purifier.input_noise`."""
        return self.sigma

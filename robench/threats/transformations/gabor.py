"""Testing robustness against unforeseen adversaries (Kang et al. 2019, arXiv 1908.08016; ImageNet-UA, Kaufmann et al.).

Gabor: noise made of sparse waves whose strengths the attacker chooses (Co et al. 2019, arXiv 1906.03455).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robench.core.registry import transformations
from robench.core.rng import Stream
from robench.threats.transformations._base import Transformation, convolved, scattered


@transformations.register("gabor")
@dataclass(frozen=True)
class Gabor(Transformation):
    """Waves around random pixels of each channel; radius: the largest strength of a wave.

    Positions, direction and frequency are drawn once for each image. ImageNet-UA redraws direction and frequency at
    every step, which would make results impossible to verify.

    Args:
        kernel: side of the square that a wave covers, odd, in pixels.
        sides: number of superposed directions: 3 at 32 pixels, 5 at 224 (ImageNet-UA).
        sigma: width of the waves' envelope, in units of the kernel's side.
        density: share of the pixels at which a wave is centered.
    """

    kernel: int = 23
    sides: int = 3
    sigma: float = 3.0
    density: float = 0.1

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise ValueError(f"sigma={self.sigma!r}: expected a number above 0")
        if self.kernel < 3 or self.kernel % 2 == 0 or self.sides < 1 or not 0 < self.density <= 1:
            raise ValueError("expected an odd kernel of 3 or more, sides of 1 or more, a density in (0, 1]")

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return channels, 1, max(round(self.density * height * width), 1)

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        channels, height, width = x.shape[1:]
        stream, zero = Stream.of("gabor"), torch.zeros_like(sample)
        order = stream.uniform(sample, zero, 0, (channels, height * width)).argsort(dim=2, stable=True)
        maps = scattered(theta[:, :, 0], order[..., : theta.shape[-1]], height, width)
        angle, frequency = stream.uniform(sample, zero, 1, (2,)).unbind(1)
        kernels = self._waves(math.pi * angle, 3 + max(self.kernel / 4 - 3, 0) * frequency)
        return x + convolved(maps, kernels[:, None].expand(-1, channels, -1, -1))

    def _waves(self, angle: Tensor, frequency: Tensor) -> Tensor:
        """The kernel of a wave, (N, kernel, kernel): one direction at full strength, the others at 1 / sides each."""
        offset = torch.linspace(-0.5, 0.5, self.kernel, device=angle.device)
        down, across = offset[:, None], offset[None]
        envelope = torch.exp(-0.5 * (down.square() + across.square()) / (self.sigma + 1e-3) ** 2)
        waves = torch.zeros(len(angle), self.kernel, self.kernel, device=angle.device)
        for side in range(self.sides):
            direction = (angle + math.pi * side / self.sides)[:, None, None]
            along = across * direction.cos() + down * direction.sin()
            wave = torch.cos(2 * math.pi * frequency[:, None, None] * along)
            waves = waves + wave / (self.sides if side else 1)
        return envelope * waves

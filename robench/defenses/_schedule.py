"""The forward and the reverse process of a diffusion model, on images in [-1, 1].

Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239; Song et al. 2020, "Denoising Diffusion
Implicit Models", arXiv 2010.02502, whose alpha is Ho's alpha bar.

The schedulers of `diffusers` do the same, but DDPMScheduler draws its noise per batch and DDIMScheduler takes strides
that divide the whole length. This schedule takes the noise as an argument, and any two times. The tests compare it with
both.
"""

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Linear beta schedule; a time t = 0 .. length counts the noising steps, and 0 is the clean image.

    Attributes:
        length: T.
        beta_start, beta_end: the first and the last beta.
        kept: alpha bar of every time, the share of the variance that comes from the image; 1 at time 0.
    """

    length: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    kept: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length={self.length}: expected at least 1")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start={self.beta_start} and beta_end={self.beta_end}: expected 0 < start <= end < 1"
            )
        rise = (self.beta_end - self.beta_start) / max(1, self.length - 1)
        factors = (1 - self.beta_start - i * rise for i in range(self.length))
        kept = accumulate(factors, lambda product, factor: product * factor, initial=1.0)
        object.__setattr__(self, "kept", tuple(kept))

    def diffuse(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Sample x_t from x_0, Ho's equation 4.

        Args:
            x, noise: (N, C, H, W); the noise is standard normal.
            t: (N,) int64, 0 .. length.
        """
        kept = torch.tensor(self.kept, dtype=x.dtype, device=x.device)[t].view(-1, 1, 1, 1)
        return kept.sqrt() * x + (1 - kept).sqrt() * noise

    def sigma(self, t: int, before: int, eta: float) -> float:
        """Standard deviation of the noise that a reverse step adds, DDIM's equation 16; Ho's beta tilde if eta is 1."""
        now, then = self.kept[t], self.kept[before]
        return eta * ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5

    def reverse(
        self, x: Tensor, predicted: Tensor, t: int, before: int, eta: float, noise: Tensor | None, clip: bool
    ) -> Tensor:
        """Compute x at time `before` from x at time `t` by DDIM's equation 12; for eta 1 this is Ho's equation 7.

        Args:
            x: (N, C, H, W).
            predicted: the predicted noise, of the shape of `x`.
            t, before: length >= t > before >= 0.
            noise: standard normal, of the shape of `x`; None if sigma is 0.
            clip: clip the predicted x_0 to [-1, 1] and recompute the predicted noise from it.
        """
        now, then = self.kept[t], self.kept[before]
        clean = (x - (1 - now) ** 0.5 * predicted) / now**0.5
        if clip:
            clean = clean.clamp(-1, 1)
            predicted = (x - now**0.5 * clean) / (1 - now) ** 0.5
        sigma = self.sigma(t, before, eta)
        x = then**0.5 * clean + max(0.0, 1 - then - sigma**2) ** 0.5 * predicted
        return x if noise is None else x + sigma * noise

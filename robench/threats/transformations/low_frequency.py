"""Low frequency adversarial perturbation (Guo et al. 2018, arXiv 1809.08758): only low frequencies change."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.core.registry import transformations
from robench.threats.transformations._base import Transformation
from robench.threats.transformations.jpeg import dct_basis


@transformations.register("low-frequency")
@dataclass(frozen=True)
class LowFrequency(Transformation):
    """Perturbation by the lowest DCT coefficients; radius: their L2 norm, which equals that of the perturbation.

    Args:
        ratio: share of the frequencies in each direction: 1/8 in the paper, at 224 pixels; at 32 pixels it keeps 4 x 4.
    """

    norm: ClassVar[str] = "L2"

    ratio: float = 0.125

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio!r}: expected a fraction in (0, 1]")

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return channels, max(round(self.ratio * height), 1), max(round(self.ratio * width), 1)

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        down, across = (
            dct_basis(size)[:count].to(x) for size, count in zip(x.shape[2:], theta.shape[2:], strict=True)
        )
        return x + torch.einsum("ncuv,ui,vj->ncij", theta, down, across)

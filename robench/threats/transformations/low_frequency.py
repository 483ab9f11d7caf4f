"""Low frequency adversarial perturbation (Guo et al. 2018, arXiv 1809.08758): only slow waves are added."""

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
    """DCT coefficients of the image, the lowest alone; radius: their L2 norm, which is the perturbation's.

    Args:
        ratio: share of the frequencies either way: the paper's 1/8 at 224 pixels; of 32 it leaves 4 by 4.
    """

    norm: ClassVar[str] = "L2"

    ratio: float = 0.125

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio!r}: expected a share in (0, 1]")

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return channels, max(round(self.ratio * height), 1), max(round(self.ratio * width), 1)

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        down, across = (
            dct_basis(size)[:kept].to(x) for size, kept in zip(x.shape[2:], theta.shape[2:], strict=True)
        )
        return x + torch.einsum("ncuv,ui,vj->ncij", theta, down, across)

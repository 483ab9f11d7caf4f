"""Spatially transformed adversarial examples (Xiao et al. 2018, arXiv 1801.02612): StAdv, a flow field over pixels."""

from dataclasses import dataclass

from torch import Tensor

from robench.core.registry import transformations
from robench.threats.transformations._base import Transformation, pixel_grid, roughness, sampled


@transformations.register("stadv")
@dataclass(frozen=True)
class StAdv(Transformation):
    """Every pixel is sampled at a nearby position; radius: the largest displacement across or down, in pixels.

    The paper bounds the flow by a penalty alone. Laidlaw & Feizi (arXiv 1906.00001) bound it as here, by 0.05 of half
    the image's side: 0.8 pixels at 32.

    Args:
        smooth: weight of the penalty on differences between neighboring flows (eq. 4), 0.05 in the paper. It does not
            restrict the threat; it weakens an attack, which stops making progress once the loss saturates.
    """

    smooth: float = 0.0

    def __post_init__(self) -> None:
        if self.smooth < 0:
            raise ValueError(f"smooth={self.smooth!r}: expected 0 or more")

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return 2, height, width

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        return sampled(x, pixel_grid(x) + theta.permute(0, 2, 3, 1))

    @property
    def penalised(self) -> bool:
        return self.smooth > 0

    def penalty(self, theta: Tensor) -> Tensor:
        return self.smooth * roughness((theta.diff(dim=2), theta.diff(dim=3)))

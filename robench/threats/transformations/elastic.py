"""Testing robustness against unforeseen adversaries (Kang et al. 2019, arXiv 1908.08016; ImageNet-UA, Kaufmann et al.).

Elastic: every pixel is sampled at a nearby position given by a smooth displacement field.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from robench.core.registry import transformations
from robench.threats.transformations._base import Transformation, pixel_grid, sampled


@transformations.register("elastic")
@dataclass(frozen=True)
class Elastic(Transformation):
    """A coarse displacement field, upsampled bicubically; radius: its L2 norm, in units of half the image's side.

    Args:
        factor: image pixels for each pixel of the field: 2 at 32 pixels and 32 at 224 (ImageNet-UA).
    """

    norm: ClassVar[str] = "L2"

    factor: int = 2

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor={self.factor}: expected at least 1")

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return 2, max(height // self.factor, 1), max(width // self.factor, 1)

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        height, width = x.shape[2:]
        flow = functional.interpolate(theta, size=(height, width), mode="bicubic", align_corners=False)
        half = theta.new_tensor([width / 2, height / 2])
        return sampled(x, pixel_grid(x) + half * flow.permute(0, 2, 3, 1))

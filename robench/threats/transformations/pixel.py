"""Testing robustness against unforeseen adversaries (Kang et al. 2019, arXiv 1908.08016; ImageNet-UA, Kaufmann et al.).

Pixel: squares of the image are blended with their mean color, each by a share that the attacker chooses.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from robench.core.registry import transformations
from robench.threats.transformations._base import Transformation


@transformations.register("pixel")
@dataclass(frozen=True)
class Pixel(Transformation):
    """Pixelation; radius: the L2 norm of the fractions of the mean color, each in [0, 1].

    This follows the paper; its code uses the first pixel of a square instead of the mean.

    Args:
        size: side of the squares, in pixels: 4 at 32 pixels, 16 at 224 (ImageNet-UA).
    """

    norm: ClassVar[str] = "L2"
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    size: int = 4

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}: expected at least 1")

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return channels, -(-height // self.size), -(-width // self.size)

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        height, width = x.shape[2:]
        mean = functional.avg_pool2d(x, self.size, ceil_mode=True)
        share, mean = (
            part.repeat_interleave(self.size, 2).repeat_interleave(self.size, 3)[:, :, :height, :width]
            for part in (theta, mean)
        )
        return x + share * (mean - x)

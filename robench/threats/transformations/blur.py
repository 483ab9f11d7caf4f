"""Testing robustness against unforeseen adversaries (Kang et al. 2019, arXiv 1908.08016; ImageNet-UA, Kaufmann et al.).

Blur: the image is mixed with a Gaussian-blurred copy; the attacker chooses the share of the copy at each pixel.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robench.core.errors import UsageError
from robench.core.registry import transformations
from robench.threats.transformations._base import Transformation, smoothed


@transformations.register("blur")
@dataclass(frozen=True)
class Blur(Transformation):
    """Blur that varies over the image; radius: the largest weight of the blurred image at a pixel, at most 1.

    Args:
        kernel, sigma: Gaussian that blurs the image, in pixels; kernels are odd and below twice the image's side.
        spread, spread_sigma: Gaussian that smooths the shares of neighboring pixels.
    """

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    kernel: int = 17
    sigma: float = 25.0
    spread: int = 9
    spread_sigma: float = 18.0

    def __post_init__(self) -> None:
        if min(self.kernel, self.spread) < 1 or self.kernel % 2 == 0 or self.spread % 2 == 0:
            raise ValueError("expected odd kernels")
        if min(self.sigma, self.spread_sigma) <= 0:
            raise ValueError("expected sigmas above 0")

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        if max(self.kernel, self.spread) // 2 >= min(height, width):
            raise UsageError(f"kernels of {self.kernel} and {self.spread} are too large for {width} px")
        return 1, height, width

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        share = smoothed(theta, self.spread, self.spread_sigma)
        return x + share * (smoothed(x, self.kernel, self.sigma) - x)

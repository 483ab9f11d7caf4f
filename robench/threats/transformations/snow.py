"""Testing robustness against unforeseen adversaries (Kang et al. 2019, arXiv 1908.08016; ImageNet-UA, Kaufmann et al.).

Snow: layers of flakes, short lines with one direction in each layer; the attacker chooses their brightness.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.core.errors import UsageError
from robench.core.registry import transformations
from robench.core.rng import Stream
from robench.threats.transformations._base import Transformation, convolved, scattered, smoothed

_LUMINANCE = (0.2126, 0.7152, 0.0722)
# Thickness of flakes, in pixels, and their probabilities.
_THICKNESS, _SHARES = (1, 3, 5), (0.6, 0.3, 0.1)


@transformations.register("snow")
@dataclass(frozen=True)
class Snow(Transformation):
    """Flakes of chosen brightness on a bleached image; radius: the L2 norm of the brightnesses before `power`.

    The image is bleached even with zero parameters. Position, direction and thickness of the flakes are drawn for each
    image; their number is the paper's average.

    Args:
        length: side of the square that a flake covers, odd: 3 at 32 pixels, 15 at 224 (ImageNet-UA).
        layers: number of layers of flakes, with one direction each.
        grid: each layer has one flake for every grid * grid pixels: 10 at 32 pixels, 15 at 224.
        power: exponent of the parameters; larger values favor few bright flakes over many dim ones.
        bleach: share of the bleached image.
        blur: window that thickens flakes, odd, 1 for none: 1 at 32 pixels, 3 at 224.
    """

    norm: ClassVar[str] = "L2"

    length: int = 3
    layers: int = 5
    grid: int = 10
    power: int = 4
    bleach: float = 0.15
    blur: int = 1

    def __post_init__(self) -> None:
        if self.length < 3 or self.length % 2 == 0 or self.blur % 2 == 0:
            raise ValueError("expected an odd length of 3 or more and an odd blur")
        if min(self.layers, self.grid, self.blur) < 1 or self.power <= 0 or not 0 <= self.bleach <= 1:
            raise ValueError(
                "expected layers, grid and blur of 1 or more, a power above 0, a bleach in [0, 1]"
            )

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        if channels not in (1, 3):
            raise UsageError(f"snow needs images with 1 or 3 channels: got {channels}")
        return self.layers, 1, max(round(height * width / self.grid**2), 1)

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        height, width = x.shape[2:]
        index, kernels = self._draw(theta.shape[-1], height * width, sample)
        bright = theta[:, :, 0].abs().pow(self.power)
        flakes = convolved(scattered(bright, index, height, width), kernels).sum(1, keepdim=True)
        grey = (x * x.new_tensor(_LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
        bleached = torch.maximum(x, 1.5 * grey + 0.5)
        return torch.lerp(x, bleached, self.bleach) + flakes

    def _draw(self, flakes: int, pixels: int, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Draw indices of the flakes, (N, layers, flakes), and kernels of the layers, (N, layers, length, length)."""
        stream, zero = Stream.of("snow"), torch.zeros_like(sample)
        index = (stream.uniform(sample, zero, 0, (self.layers, flakes)) * pixels).long()
        end, thick, flip = stream.uniform(sample, zero, 1, (4, self.layers)).split([2, 1, 1], 1)
        # The line of each layer runs from the center to a point of one quadrant, and equally far the other way.
        middle = self.length // 2
        down, across = (1 + (end * middle).floor()).unbind(1)
        edges = torch.tensor(_SHARES, device=sample.device).cumsum(0)[:-1]
        choice = torch.bucketize(thick[:, 0].contiguous(), edges)
        width = torch.tensor(_THICKNESS, device=sample.device)[choice]
        kernels = lines(down, across, width.float(), self.length)
        kernels = torch.where(flip[:, 0, :1, None, None] < 0.5, kernels.flip(3), kernels)
        return index, smoothed(kernels, self.blur, 12.5) if self.blur > 1 else kernels


def lines(down: Tensor, across: Tensor, width: Tensor, length: int) -> Tensor:
    """Lines through the center of a square, (..., length, length), from (-down, -across) to (down, across).

    Pixel values fall from 1 to 0 within one pixel of the edge of the line; `width` is its thickness.
    """
    offset = torch.arange(length, dtype=torch.float32, device=down.device) - length // 2
    down, across, width = (part[..., None, None] for part in (down, across, width))
    steep = down > across
    # Position along the longer direction, and offset from the line in the other.
    along = torch.where(steep, offset[:, None], offset[None])
    beside = torch.where(steep, offset[None], offset[:, None])
    slope = torch.where(steep, across / down, down / across)
    thickness = width * (1 + slope).sqrt() / 2
    value = (1 + thickness / 2 - (beside - slope * along).abs()).clamp(0, 1)
    return value * (along.abs() <= torch.maximum(down, across))

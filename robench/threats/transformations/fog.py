"""Testing robustness against unforeseen adversaries (Kang et al. 2019, arXiv 1908.08016; ImageNet-UA, Kaufmann et al.).

Fog: the diamond-square algorithm, with random numbers chosen by the attacker.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robench.core.registry import transformations
from robench.threats.transformations._base import Transformation, interleaved

# The mean color of ImageNet images in the code of ImageNet-UA.
_GREY = (0.485, 0.45, 0.406)


@transformations.register("fog")
@dataclass(frozen=True)
class Fog(Transformation):
    """Gray fog whose density is the magnitude of a fractal map; radius: the largest displacement of a point of the map.

    Each parameter displaces the point of the map at its own position; the corner is never displaced.

    Args:
        decay: factor by which displacements shrink from each scale to the next finer one.
    """

    decay: float = 3.0

    def __post_init__(self) -> None:
        if self.decay <= 0:
            raise ValueError(f"decay={self.decay!r}: expected a number above 0")

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        side = 1 << (max(height, width, 2) - 1).bit_length()
        return 1, side, side

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        height, width = x.shape[2:]
        fog = diamond_square(theta[:, 0], self.decay).abs().clamp_max(1)
        top, left = (fog.shape[1] - height) // 2, (fog.shape[2] - width) // 2
        fog = fog[:, None, top : top + height, left : left + width]
        grey = x.new_tensor(_GREY).view(1, 3, 1, 1) if x.shape[1] == 3 else x.new_tensor(_GREY).mean()
        return x * (1 - fog) + grey * fog


def diamond_square(displacements: Tensor, decay: float) -> Tensor:
    """The periodic map (N, S, S), S a power of two: each point is the mean of four others plus its displacement.

    Args:
        displacements: (N, S, S).
        decay: factor by which displacements shrink from each scale to the next finer one.
    """
    side = displacements.shape[-1]
    grid, step, weight = torch.zeros_like(displacements[:, :1, :1]), side, 1.0
    while step > 1:
        half = step // 2
        scaled = weight * displacements
        # Centers of squares from their corners, then centers of diamonds from two corners and two centers.
        middle = _pair(grid, 1, -1)
        middle = (middle + middle.roll(-1, 2)) / 4 + scaled[:, half::step, half::step]
        above = (_pair(middle, 1, 1) + _pair(grid, 2, -1)) / 4 + scaled[:, ::step, half::step]
        beside = (_pair(middle, 2, 1) + _pair(grid, 1, -1)) / 4 + scaled[:, half::step, ::step]
        grid = interleaved(interleaved(grid, above, 2), interleaved(beside, middle, 2), 1)
        step, weight = half, weight / decay
    return grid


def _pair(grid: Tensor, dim: int, shift: int) -> Tensor:
    return grid + grid.roll(shift, dim)

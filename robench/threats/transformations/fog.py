"""Testing robustness against unforeseen adversaries (Kang et al. 2019, arXiv 1908.08016; ImageNet-UA, Kaufmann et al.).

Fog: the diamond-square algorithm, whose random numbers are chosen by the attacker.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robench.core.registry import transformations
from robench.threats.transformations._base import Transformation, interleaved

# The mean colour of ImageNet's images, as ImageNet-UA's code has it.
_GREY = (0.485, 0.45, 0.406)


@transformations.register("fog")
@dataclass(frozen=True)
class Fog(Transformation):
    """Grey fog whose density is the size of a fractal map; radius: the largest displacement of a point of the map.

    A parameter stands where the map's point stands that it displaces; the corner has none.

    Args:
        decay: by how much displacements shrink from one scale to the next finer one.
    """

    decay: float = 3.0

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
    """The map (N, S, S), S a power of two, whose edges meet: each point is the mean of four and its displacement."""
    side = displacements.shape[-1]
    grid, step, weight = torch.zeros_like(displacements[:, :1, :1]), side, 1.0
    while step > 1:
        half = step // 2
        moved = weight * displacements
        # The middles of squares, of their corners; then of diamonds, of two corners and two middles.
        middle = _pair(grid, 1, -1)
        middle = (middle + middle.roll(-1, 2)) / 4 + moved[:, half::step, half::step]
        above = (_pair(middle, 1, 1) + _pair(grid, 2, -1)) / 4 + moved[:, ::step, half::step]
        beside = (_pair(middle, 2, 1) + _pair(grid, 1, -1)) / 4 + moved[:, half::step, ::step]
        grid = interleaved(interleaved(grid, above, 2), interleaved(beside, middle, 2), 1)
        step, weight = half, weight / decay
    return grid


def _pair(grid: Tensor, dim: int, shift: int) -> Tensor:
    return grid + grid.roll(shift, dim)

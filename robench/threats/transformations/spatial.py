"""Exploring the landscape of spatial robustness (Engstrom et al. 2019, arXiv 1712.02779): rotations, translations."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robench.core.registry import transformations
from robench.threats.transformations._base import Transformation, pixel_grid, sampled


@transformations.register("spatial")
@dataclass(frozen=True)
class Spatial(Transformation):
    """A rotation about the center and a translation; radius: the largest angle, in degrees.

    The parameters are the angle, and the translation across and down in units of `shift / 30` pixels.

    Args:
        shift: largest translation in each direction, in pixels, at radius 30: 3 at 32 pixels, 24 at 224 (paper).
    """

    shift: float = 3.0

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"shift={self.shift!r}: expected 0 or more")

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return 3, 1, 1

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        angle, across, down = theta.flatten(1).unbind(1)
        translation = torch.stack([across, down], 1)[:, None, None] * (self.shift / 30)
        center = x.new_tensor([(x.shape[3] - 1) / 2, (x.shape[2] - 1) / 2])
        # Inverse mapping: the position in the image of each pixel of the result.
        relative = pixel_grid(x)[None] - center - translation
        angle = (angle * (math.pi / 180))[:, None, None]
        cos, sin = angle.cos(), angle.sin()
        column, row = relative.unbind(-1)
        rotated = torch.stack([cos * column - sin * row, sin * column + cos * row], -1)
        return sampled(x, rotated + center)


@transformations.register("rotation")
@dataclass(frozen=True)
class Rotation(Transformation):
    """An anticlockwise rotation about the center; radius: the largest angle, in degrees."""

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return 1, 1, 1

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        no_translation = theta.new_zeros(len(theta), 2, 1, 1)
        return Spatial().apply(x, torch.cat([theta, no_translation], 1), sample)


@transformations.register("translation")
@dataclass(frozen=True)
class Translation(Transformation):
    """A translation; radius: the largest displacement in each direction, in pixels."""

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return 2, 1, 1

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        no_rotation = theta.new_zeros(len(theta), 1, 1, 1)
        return Spatial(shift=30.0).apply(x, torch.cat([no_rotation, theta], 1), sample)

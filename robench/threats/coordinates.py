"""The space an attack searches: the pixels of an image, or the parameters of a transformation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Coordinates:
    """A space of points with a map to images. A threat model is a ball around the origin, inside the box.

    Attributes:
        low, high: lower and upper bound of every component of a point, which define the box.
    """

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def origin(self, x: Tensor) -> Tensor:
        """The point that leaves each image (N, C, H, W) unchanged, (N, ...) with four dimensions."""
        raise NotImplementedError

    def image(self, x: Tensor, point: Tensor, sample: Tensor) -> Tensor:
        """The images (N, C, H, W) in [0, 1] of the points.

        Each row of the result depends only on the same row of the arguments, bit for bit.

        Args:
            x: clean images, (N, C, H, W).
            point: one point per image, (N, ...).
            sample: index of each image in its dataset, (N,) int64; the seed of random numbers that the attacker does
                not control.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Pixels(Coordinates):
    """A point is an image."""

    def origin(self, x: Tensor) -> Tensor:
        return x

    def image(self, x: Tensor, point: Tensor, sample: Tensor) -> Tensor:
        return point


PIXELS = Pixels()

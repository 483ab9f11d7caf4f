"""The space an attack searches: the pixels of an image, or the parameters of a transformation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Coordinates:
    """The meaning of a point and the image it stands for. A threat is a ball around the origin, inside the box.

    Attributes:
        low, high: lower and upper bound of every component of a point.
    """

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def origin(self, x: Tensor) -> Tensor:
        """The point that leaves each image (N, C, H, W) unchanged, (N, ...) with four dimensions."""
        raise NotImplementedError

    def image(self, x: Tensor, point: Tensor, sample: Tensor) -> Tensor:
        """The images (N, C, H, W) in [0, 1] that the points stand for.

        Each row of the result depends on the same row of the arguments only, bit for bit.

        Args:
            x: clean images, (N, C, H, W).
            point: one point for each image, (N, ...).
            sample: (N,) int64, index of each image in its data set; seeds what the attacker does not control.
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

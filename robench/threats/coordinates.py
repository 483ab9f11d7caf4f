"""In what an attacker searches: an image's own pixels, or the parameters of a change made to it."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Coordinates:
    """What a point is, and which image it stands for; a threat is a ball around the origin, within the box.

    Attributes:
        low, high: the box that every number of a point lies in.
    """

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def origin(self, x: Tensor) -> Tensor:
        """The point of no change for each image (N, C, H, W): (N, ...) of three more dimensions."""
        raise NotImplementedError

    def image(self, x: Tensor, point: Tensor, sample: Tensor) -> Tensor:
        """The images (N, C, H, W) in [0, 1] that the points stand for.

        A row's bits hang on that row alone.

        Args:
            x: the clean images.
            point: one an image.
            sample: (N,) int64, index of each image in its data set, which decides what the attacker does not choose.
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

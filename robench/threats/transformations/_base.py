"""What a transformation is: a differentiable change of an image, by parameters that an attacker chooses."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.threats.coordinates import Coordinates

# Images are made in groups of one shape, so that their bits do not hang on how many there are.
_GROUP = 8


@dataclass(frozen=True)
class Transformation(Coordinates):
    """Base of every transformation: a frozen dataclass whose fields are its settings, the keywords of its spec.

    A subclass gives `shape` and `apply`. What its paper draws by chance and does not optimise hangs on the image's
    place in its data set alone (`robench.core.rng`), so that the set of images it reaches is one thing for everybody.

    Attributes:
        norm: that bounds the parameters: "Linf" or "L2".
        low, high: the box of each parameter, (-inf, inf) or (0, high).
    """

    norm: ClassVar[str] = "Linf"
    low: ClassVar[float] = -math.inf
    high: ClassVar[float] = math.inf

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """The shape of one image's parameters."""
        raise NotImplementedError

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        """The changed images (N, C, H, W), differentiable in `theta`; what leaves [0, 1] is clipped by the caller.

        Args:
            x: (N, C, H, W) float32 in [0, 1].
            theta: (N, *shape).
            sample: (N,) int64, index of each image in its data set.
        """
        raise NotImplementedError

    @property
    def penalised(self) -> bool:
        """Whether the paper's objective is the loss less a penalty on the parameters."""
        return False

    def penalty(self, theta: Tensor) -> Tensor:
        """What is subtracted from the loss of each row, (N,)."""
        raise NotImplementedError

    def origin(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), *self.shape(*x.shape[1:]))

    def image(self, x: Tensor, point: Tensor, sample: Tensor) -> Tensor:
        made = [x[:0]]
        with torch.no_grad():
            for start in range(0, len(x), _GROUP):
                own = torch.arange(start, start + _GROUP, device=x.device).clamp_max(len(x) - 1)
                images = self.apply(x[own], point[own], sample[own]).clamp(0, 1)
                made.append(images[: len(x) - start])
        return torch.cat(made)


def roughness(differences: Iterable[Tensor]) -> Tensor:
    """The lengths of differences between neighbours (N, C, ...), summed, (N,); every pair counts twice."""
    # The root has no gradient at 0, where neighbours agree.
    lengths = [(each.square().sum(1) + 1e-10).sqrt().flatten(1).sum(1) for each in differences]
    return 2 * torch.stack(lengths).sum(0)


def interleaved(even: Tensor, odd: Tensor, dim: int) -> Tensor:
    """Two tensors of one shape taken by turns along `dim`, which becomes twice as long."""
    return torch.stack([even, odd], dim + 1).flatten(dim, dim + 1)


def pixel_grid(x: Tensor) -> Tensor:
    """Column and row of each pixel's centre, (H, W, 2)."""
    rows = torch.arange(x.shape[2], dtype=x.dtype, device=x.device)
    columns = torch.arange(x.shape[3], dtype=x.dtype, device=x.device)
    down, across = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([across, down], -1)


def sampled(x: Tensor, where: Tensor) -> Tensor:
    """The images read between their pixels, bilinearly, and black outside.

    Args:
        x: (N, C, H, W).
        where: column and row to read, in pixels, for each pixel of the result, (N, H, W, 2).
    """
    size = where.new_tensor([x.shape[3], x.shape[2]])
    grid = (2 * where + 1) / size - 1
    return torch.nn.functional.grid_sample(
        x, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def smoothed(maps: Tensor, kernel: int, sigma: float) -> Tensor:
    """Each map (N, C, H, W) under a Gaussian window of `kernel` (odd) pixels, the edge mirrored."""
    half = kernel // 2
    place = torch.arange(kernel, dtype=maps.dtype, device=maps.device) - half
    weight = torch.exp(-0.5 * (place / sigma).square())
    weight = weight / weight.sum()
    channels = maps.shape[1]
    maps = torch.nn.functional.pad(maps, (half, half, half, half), mode="reflect")
    across = weight.view(1, 1, 1, -1).expand(channels, 1, 1, kernel)
    down = weight.view(1, 1, -1, 1).expand(channels, 1, kernel, 1)
    return torch.nn.functional.conv2d(
        torch.nn.functional.conv2d(maps, across, groups=channels), down, groups=channels
    )


def laid(maps: Tensor, kernels: Tensor) -> Tensor:
    """Each map (N, L, H, W) convolved with a kernel of its own (N, L, k, k), k odd: the same size, black outside."""
    n, layers, height, width = maps.shape
    k = kernels.shape[-1]
    whole = torch.nn.functional.conv2d(
        maps.reshape(1, n * layers, height, width),
        kernels.flip(2, 3).reshape(n * layers, 1, k, k).to(maps),
        padding=k // 2,
        groups=n * layers,
    )
    return whole.view(n, layers, height, width)


def scattered(values: Tensor, place: Tensor, height: int, width: int) -> Tensor:
    """Values (N, L, m) put at their places (N, L, m), indices of pixels row by row: maps (N, L, H, W), 0 elsewhere."""
    empty = values.new_zeros(*values.shape[:2], height * width)
    return empty.scatter_add(2, place, values).view(*values.shape[:2], height, width)

"""Base class of transformations: differentiable functions of an image with parameters that the attacker chooses."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.threats.coordinates import Coordinates

# Images are computed in groups of a fixed size, so that their bits do not depend on the batch size.
_GROUP = 8


@dataclass(frozen=True)
class Transformation(Coordinates):
    """Base class of transformations; a subclass is a frozen dataclass whose fields are the arguments of its spec.

    Subclasses define `shape` and `apply`. Random numbers that the paper does not optimize must depend only on the index
    of the image in its dataset (see `robench.core.rng`), so that every attack can reach the same images.

    Attributes:
        norm: norm of the parameters that the radius bounds, "Linf" or "L2".
        low, high: bounds of each parameter, (-inf, inf) or (0, high).
    """

    norm: ClassVar[str] = "Linf"
    low: ClassVar[float] = -math.inf
    high: ClassVar[float] = math.inf

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """The shape of the parameters for one image."""
        raise NotImplementedError

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        """The transformed images (N, C, H, W), differentiable in `theta`; the caller clips them to [0, 1].

        Args:
            x: images, (N, C, H, W) float32 in [0, 1].
            theta: parameters, (N, *shape).
            sample: index of each image in its dataset, (N,) int64.
        """
        raise NotImplementedError

    @property
    def penalised(self) -> bool:
        """Whether attacks maximize the loss minus `penalty`."""
        return False

    def penalty(self, theta: Tensor) -> Tensor:
        """The penalty on the parameters, subtracted from the loss of each row, (N,)."""
        raise NotImplementedError

    def origin(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), *self.shape(*x.shape[1:]))

    def image(self, x: Tensor, point: Tensor, sample: Tensor) -> Tensor:
        images = [x[:0]]
        with torch.no_grad():
            for start in range(0, len(x), _GROUP):
                rows = torch.arange(start, start + _GROUP, device=x.device).clamp_max(len(x) - 1)
                group = self.apply(x[rows], point[rows], sample[rows]).clamp(0, 1)
                images.append(group[: len(x) - start])
        return torch.cat(images)


def roughness(differences: Iterable[Tensor]) -> Tensor:
    """The summed lengths of differences between neighbors (N, C, ...), (N,); every pair counts twice."""
    # The square root has no gradient at 0, where neighbors are equal.
    lengths = [(delta.square().sum(1) + 1e-10).sqrt().flatten(1).sum(1) for delta in differences]
    return 2 * torch.stack(lengths).sum(0)


def interleaved(even: Tensor, odd: Tensor, dim: int) -> Tensor:
    """Two tensors of equal shape interleaved along `dim`, which doubles in length."""
    return torch.stack([even, odd], dim + 1).flatten(dim, dim + 1)


def pixel_grid(x: Tensor) -> Tensor:
    """Column and row of each pixel center, (H, W, 2)."""
    rows = torch.arange(x.shape[2], dtype=x.dtype, device=x.device)
    columns = torch.arange(x.shape[3], dtype=x.dtype, device=x.device)
    down, across = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([across, down], -1)


def sampled(x: Tensor, positions: Tensor) -> Tensor:
    """Sample images bilinearly at the given positions; positions outside the image are black.

    Args:
        x: (N, C, H, W).
        positions: column and row to sample for each pixel of the result, in pixels, (N, H, W, 2).
    """
    size = positions.new_tensor([x.shape[3], x.shape[2]])
    grid = (2 * positions + 1) / size - 1
    return torch.nn.functional.grid_sample(
        x, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def smoothed(maps: Tensor, kernel: int, sigma: float) -> Tensor:
    """Smooth maps (N, C, H, W) by a Gaussian window of `kernel` pixels (odd), with mirrored edges."""
    half = kernel // 2
    offset = torch.arange(kernel, dtype=maps.dtype, device=maps.device) - half
    weight = torch.exp(-0.5 * (offset / sigma).square())
    weight = weight / weight.sum()
    channels = maps.shape[1]
    maps = torch.nn.functional.pad(maps, (half, half, half, half), mode="reflect")
    across = weight.view(1, 1, 1, -1).expand(channels, 1, 1, kernel)
    down = weight.view(1, 1, -1, 1).expand(channels, 1, kernel, 1)
    maps = torch.nn.functional.conv2d(maps, across, groups=channels)
    return torch.nn.functional.conv2d(maps, down, groups=channels)


def convolved(maps: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each map (N, L, H, W) with its own kernel (N, L, k, k), k odd, with zero padding: (N, L, H, W)."""
    n, layers, height, width = maps.shape
    k = kernels.shape[-1]
    output = torch.nn.functional.conv2d(
        maps.reshape(1, n * layers, height, width),
        kernels.flip(2, 3).reshape(n * layers, 1, k, k).to(maps),
        padding=k // 2,
        groups=n * layers,
    )
    return output.view(n, layers, height, width)


def scattered(values: Tensor, index: Tensor, height: int, width: int) -> Tensor:
    """Maps (N, L, H, W) with `values` (N, L, m) at the row-major pixel indices `index` (N, L, m), and 0 elsewhere."""
    empty = values.new_zeros(*values.shape[:2], height * width)
    return empty.scatter_add(2, index, values).view(*values.shape[:2], height, width)

"""Functional adversarial attacks (Laidlaw & Feizi 2019, arXiv 1906.00001): ReColorAdv, one color map per image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robench.core.errors import UsageError
from robench.core.registry import transformations
from robench.threats.transformations._base import Transformation, roughness

# The primaries of sRGB in CIE XYZ, and the white point of D65, where L* = 100.
_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9504))
_U_WHITE, _V_WHITE = 0.1978, 0.4683
# Slightly wider than the primaries of sRGB: green to red; blue to green.
_U_RANGE, _V_RANGE = (0.124, 0.452), (0.157, 0.564)
_TINY = 1e-8


@transformations.register("recolor")
@dataclass(frozen=True)
class ReColor(Transformation):
    """One map of colors (CIELUV) for all pixels; radius: the largest change along an axis scaled to [0, 1].

    Args:
        grid: grid points of the map along L*, u* and v*, with trilinear interpolation.
        smooth: weight of the penalty on differences between the changes of neighboring colors (0.05 in the paper's
            code). It does not restrict the threat.
    """

    grid: tuple[int, int, int] = (16, 32, 32)
    smooth: float = 0.0

    def __post_init__(self) -> None:
        if len(self.grid) != 3 or not all(isinstance(n, int) and n >= 2 for n in self.grid):
            raise ValueError(f"grid={self.grid!r}: expected three whole numbers of at least 2")
        if self.smooth < 0:
            raise ValueError(f"smooth={self.smooth!r}: expected 0 or more")

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        if channels != 3:
            raise UsageError(f"recolor needs images with 3 channels: got {channels}")
        return 3, self.grid[0], self.grid[1] * self.grid[2]

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        colours = to_luv(x)
        change = self._interpolated(theta, colours)
        # Clipped to the ends of the axes; with zero parameters the image is unchanged, bit for bit.
        difference = to_rgb((colours + change).clamp(0, 1)) - to_rgb(colours)
        return x + difference

    def _interpolated(self, theta: Tensor, colours: Tensor) -> Tensor:
        """The map interpolated at the color of every pixel, (N, 3, H, W)."""
        volume = theta.view(len(theta), 3, *self.grid)
        # grid_sample expects the last axis first.
        positions = 2 * colours.permute(0, 2, 3, 1).flip(-1)[:, None] - 1
        return torch.nn.functional.grid_sample(
            volume, positions, mode="bilinear", padding_mode="border", align_corners=True
        )[:, :, 0]

    @property
    def penalised(self) -> bool:
        return self.smooth > 0

    def penalty(self, theta: Tensor) -> Tensor:
        volume = theta.view(len(theta), 3, *self.grid)
        return self.smooth * roughness(volume.diff(dim=dim) for dim in (2, 3, 4))


def to_luv(x: Tensor) -> Tensor:
    """Convert sRGB images (N, 3, H, W) to CIELUV, (L* / 100, (u* + 100) / 200, (v* + 100) / 200), in [0, 1]."""
    linear = torch.where(x <= 0.04045, x / 12.92, ((x.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    big_x, big_y, big_z = torch.einsum("rc,nchw->nrhw", x.new_tensor(_XYZ), linear).unbind(1)
    total = big_x + 15 * big_y + 3 * big_z
    dark = total < _TINY
    u = torch.where(dark, _U_WHITE, 4 * big_x / total.clamp_min(_TINY))
    v = torch.where(dark, _V_WHITE, 9 * big_y / total.clamp_min(_TINY))
    knee = (6 / 29) ** 3
    light = torch.where(big_y <= knee, (29 / 3) ** 3 * big_y, 116 * big_y.clamp_min(knee) ** (1 / 3) - 16)
    u_star, v_star = 13 * light * (u - _U_WHITE), 13 * light * (v - _V_WHITE)
    return torch.stack([light / 100, (u_star + 100) / 200, (v_star + 100) / 200], 1).clamp(0, 1)


def to_rgb(luv: Tensor) -> Tensor:
    """The inverse of `to_luv`, (N, 3, H, W) in [0, 1]; colors outside sRGB are clipped."""
    light = luv[:, 0] * 100
    divisor = light.clamp_min(1e-4)
    # For dark colours a small step of u* and v* leads to chromaticities outside sRGB, which are clipped to its range.
    u = ((luv[:, 1] * 200 - 100) / (13 * divisor) + _U_WHITE).clamp(*_U_RANGE)
    v = ((luv[:, 2] * 200 - 100) / (13 * divisor) + _V_WHITE).clamp(*_V_RANGE)
    big_y = torch.where(light <= 8, light * (3 / 29) ** 3, ((light.clamp_min(8) + 16) / 116) ** 3)
    big_x = big_y * 9 * u / (4 * v)
    big_z = big_y * (12 - 3 * u - 20 * v) / (4 * v)
    to_linear = torch.linalg.inv(torch.tensor(_XYZ, dtype=torch.float64)).to(luv)
    linear = torch.einsum("rc,nchw->nrhw", to_linear, torch.stack([big_x, big_y, big_z], 1).clamp(0, 1.1))
    bright = 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, bright).clamp(0, 1)

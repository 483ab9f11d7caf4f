"""Testing robustness against unforeseen adversaries (Kang et al. 2019, arXiv 1908.08016; ImageNet-UA, Kaufmann et al.).

JPEG: the attacker changes the coefficients that JPEG stores, like errors of their rounding.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robench.core.errors import UsageError
from robench.core.registry import transformations
from robench.threats.transformations._base import Transformation

SIDE = 8
# Luminance and color differences of red, green and blue, as defined by JFIF.
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@transformations.register("jpeg")
@dataclass(frozen=True)
class JPEG(Transformation):
    """Errors of the DCT coefficients of 8x8 blocks in YCbCr; radius: the largest error, for pixels in [0, 1].

    As in ImageNet-UA, coefficients are not rounded, so that zero parameters leave the image unchanged, and colors are
    not subsampled.
    """

    def shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        if channels != 3:
            raise UsageError(f"jpeg needs images with 3 channels: got {channels}")
        return 3, SIDE * -(-height // SIDE), SIDE * -(-width // SIDE)

    def apply(self, x: Tensor, theta: Tensor, sample: Tensor) -> Tensor:
        # The pipeline is linear, so the coefficients of the image itself are not needed.
        to_rgb = torch.linalg.inv(torch.tensor(YCBCR, dtype=torch.float64)).to(x)
        change = torch.einsum("rc,nchw->nrhw", to_rgb, from_blocks(theta))
        return x + change[:, :, : x.shape[2], : x.shape[3]]


def from_blocks(coefficients: Tensor) -> Tensor:
    """Images (N, C, H, W) from orthonormal DCT coefficients arranged by block; H and W are multiples of 8."""
    n, channels, height, width = coefficients.shape
    basis = dct_basis(SIDE).to(coefficients)
    blocks = coefficients.view(n, channels, height // SIDE, SIDE, width // SIDE, SIDE)
    return torch.einsum("nchuwv,ui,vj->nchiwj", blocks, basis, basis).reshape_as(coefficients)


@functools.lru_cache(maxsize=32)
def dct_basis(side: int) -> Tensor:
    """The basis of the orthonormal DCT-II, (side, side) float64; row k has k half periods."""
    k, i = torch.arange(side, dtype=torch.float64)[:, None], torch.arange(side, dtype=torch.float64)[None]
    waves = torch.cos(math.pi / side * (i + 0.5) * k) * math.sqrt(2 / side)
    waves[0] = math.sqrt(1 / side)
    return waves

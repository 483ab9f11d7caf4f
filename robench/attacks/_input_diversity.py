"""Improving transferability of adversarial examples with input diversity (Xie et al. 2019, arXiv 1803.06978).

The paper enlarges images of 299 px to at most 330 px and pads them to 330 px. Networks here take a fixed input size, so
an image is reduced to at least nine tenths of its size and zero-padded back at a random position. This is a linear map;
a gradient at the resized image is pulled back by its transpose.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robench.attacks._base import Rows
from robench.core.rng import Stream

_SMALLEST = 0.9


@dataclass(frozen=True)
class Resizing:
    """The linear map out = down @ image @ across^T of each lane; `down` is (S, H, H) and `across` (S, W, W)."""

    down: Tensor
    across: Tensor

    @classmethod
    def drawn(cls, stream: Stream, rows: Rows, step: Tensor, chance: float) -> "Resizing":
        """Draw a resizing for step `step` (S,) of each lane; with probability 1 - `chance` the image is unchanged."""
        draw = stream.uniform(rows.sample, rows.rank, step, (4,))
        resized = draw[:, 0] < chance
        height, width = rows.x.shape[2:]
        return cls(
            _matrix(height, torch.where(resized, draw[:, 1], 1.0), draw[:, 2]),
            _matrix(width, torch.where(resized, draw[:, 1], 1.0), draw[:, 3]),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The resized and padded images, (S, C, H, W)."""
        return self.down[:, None] @ x @ self.across[:, None].transpose(2, 3)

    def back(self, grad: Tensor) -> Tensor:
        """Pull the gradient at the resized image back to the image, (S, C, H, W)."""
        return self.down[:, None].transpose(2, 3) @ grad @ self.across[:, None]


def _matrix(side: int, size: Tensor, place: Tensor) -> Tensor:
    """The matrix of bilinear resizing of `side` pixels and padding back to `side`, (S, side, side).

    Args:
        size: relative size (S,) in [0, 1], from the smallest to the full size.
        place: relative position (S,) in [0, 1) within the padding.
    """
    smallest = max(round(_SMALLEST * side), 1)
    length = smallest + (size * (side - smallest + 1)).long().clamp_max(side - smallest)
    before = (place * (side - length + 1)).long().clamp_max(side - smallest)
    out = torch.arange(side, device=size.device) - before[:, None]
    inside = (out >= 0) & (out < length[:, None])
    # Aligned by pixel centers, as in bilinear interpolation without align_corners.
    source = ((out + 0.5) * side / length[:, None] - 0.5).clamp(0, side - 1)
    pixels = torch.arange(side, device=size.device)
    weight = (1 - (source[:, :, None] - pixels).abs()).clamp_min(0)
    return weight * inside[:, :, None]

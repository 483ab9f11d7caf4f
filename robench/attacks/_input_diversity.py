"""Improving transferability of adversarial examples with input diversity (Xie et al. 2019, arXiv 1803.06978).

The paper enlarges images of 299 px to at most 330 and pads to 330. Networks here take one size: an image is made
smaller, down to nine tenths, and padded with zeros back to its size at a random place. That is a linear map, so a
gradient at the resized image is pulled back by its transpose.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robench.attacks._base import Rows
from robench.core.rng import Stream

_SMALLEST = 0.9


@dataclass(frozen=True)
class Resizing:
    """For each lane: out = down @ image @ across^T, both (S, side, side) of the image's height and width."""

    down: Tensor
    across: Tensor

    @classmethod
    def drawn(cls, stream: Stream, rows: Rows, step: Tensor, chance: float) -> "Resizing":
        """A resizing for each lane's step (S,); with 1 - `chance` it leaves the image as it is."""
        draw = stream.uniform(rows.sample, rows.rank, step, (4,))
        done = draw[:, 0] < chance
        height, width = rows.x.shape[2:]
        return cls(
            _matrix(height, torch.where(done, draw[:, 1], 1.0), draw[:, 2]),
            _matrix(width, torch.where(done, draw[:, 1], 1.0), draw[:, 3]),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The resized and padded images, (S, C, H, W)."""
        return self.down[:, None] @ x @ self.across[:, None].transpose(2, 3)

    def back(self, grad: Tensor) -> Tensor:
        """The gradient in the image of a gradient at the resized one, (S, C, H, W)."""
        return self.down[:, None].transpose(2, 3) @ grad @ self.across[:, None]


def _matrix(side: int, size: Tensor, place: Tensor) -> Tensor:
    """Bilinear resizing of `side` pixels and padding back to `side`, (S, side, side).

    Args:
        size: (S,) in [0, 1], from the smallest size to the whole one; place: (S,) in [0, 1), of the padding.
    """
    smallest = max(round(_SMALLEST * side), 1)
    length = smallest + (size * (side - smallest + 1)).long().clamp_max(side - smallest)
    before = (place * (side - length + 1)).long().clamp_max(side - smallest)
    out = torch.arange(side, device=size.device) - before[:, None]
    inside = (out >= 0) & (out < length[:, None])
    # Pixel centres: half a pixel in either image is half a pixel of its own.
    source = ((out + 0.5) * side / length[:, None] - 0.5).clamp(0, side - 1)
    pixels = torch.arange(side, device=size.device)
    weight = (1 - (source[:, :, None] - pixels).abs()).clamp_min(0)
    return weight * inside[:, :, None]

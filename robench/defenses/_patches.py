"""Patches and position embeddings, shared by encoders and masked autoencoders."""

import math

import torch
from torch import Tensor


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed sine and cosine positions of a square grid, after a row of zeros for the class token.

    Half of the width encodes the column and half the row, as in "Attention Is All You Need" (arXiv 1706.03762,
    section 3.5). The shape is (1, side * side + 1, width); width must be a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"sine and cosine positions need a width that is a multiple of 4: got {width}")
    wave = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * wave
    one_axis = torch.cat([angle.sin(), angle.cos()], 1)
    across = one_axis[None, :, :].expand(side, side, -1)
    down = one_axis[:, None, :].expand(side, side, -1)
    grid = torch.cat([across, down], 2).reshape(side * side, width)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), grid])[None].float()


def patchify(x: Tensor, patch: int) -> Tensor:
    """The pixels of each patch, (N, C, H, W) -> (N, patches, C * patch * patch), row by row."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(n, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(pixels: Tensor, patch: int) -> Tensor:
    """The inverse of `patchify` for square images, (N, patches, 3 * patch * patch) -> (N, 3, H, W)."""
    n, patches, numbers = pixels.shape
    side, channels = math.isqrt(patches), numbers // patch**2
    x = pixels.reshape(n, side, side, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(n, channels, side * patch, side * patch)


def pick(rows: Tensor, keep: Tensor) -> Tensor:
    """Select rows of each image, (N, M, D) and (N, K) -> (N, K, D)."""
    return rows.gather(1, keep[:, :, None].expand(-1, -1, rows.shape[2]))

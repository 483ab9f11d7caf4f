"""Fixed positions of a masked autoencoder's patches, for the purifiers and for pre-training alike."""

import torch
from torch import Tensor


def sincos_positions(width: int, side: int) -> Tensor:
    """Fixed sine and cosine positions of a square grid, a row of zeros first for the class token.

    Half of the width tells the column and half the row, each as in "Attention Is All You Need" (arXiv
    1706.03762, section 3.5). Shape (1, side * side + 1, width); width a multiple of 4.
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

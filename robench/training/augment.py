"""Random crops, flips, rotations and scales of a batch, on its device."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from robench.training.recipe import Recipe


def augment(x: Tensor, recipe: Recipe) -> Tensor:
    """Augment every image as `recipe` says; pixels outside the image are black.

    Args:
        x: (N, C, H, W) in [0, 1].

    Returns:
        The same shape and range.
    """
    if recipe.rotation or recipe.scaling:
        x = _turn(x, math.radians(recipe.rotation), recipe.scaling)
    if recipe.resized_crop:
        x = _resized_crop(x, recipe.resized_crop)
    if recipe.shift:
        x = _crop(x, recipe.shift)
    if recipe.flip:
        mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
        x = torch.where(mirrored, x.flip(3), x)
    return x


def _crop(x: Tensor, pad: int) -> Tensor:
    n, c, h, w = x.shape
    corner = torch.randint(0, 2 * pad + 1, (2, n, 1), device=x.device)
    rows = corner[0] + torch.arange(h, device=x.device)
    columns = corner[1] + torch.arange(w, device=x.device)
    padded = F.pad(x, (pad, pad, pad, pad))
    picked = padded.gather(2, rows[:, None, :, None].expand(n, c, h, w + 2 * pad))
    return picked.gather(3, columns[:, None, None, :].expand(n, c, h, w))


def _resized_crop(x: Tensor, smallest: float) -> Tensor:
    """A part of each image, stretched to the whole by bicubic interpolation.

    The area is uniform in [smallest, 1] and the logarithm of the shape uniform, as in Szegedy et al., arXiv
    1409.4842, section 6. A side that exceeds the image is cut to the image's side, which is our choice.
    """
    draw = torch.rand(4, len(x), device=x.device)
    area = smallest + (1 - smallest) * draw[0]
    shape = ((2 * draw[1] - 1) * math.log(4 / 3)).exp()
    width, height = (area * shape).sqrt().clamp(max=1), (area / shape).sqrt().clamp(max=1)
    zero = torch.zeros_like(area)
    middle = [(1 - part) * (2 * where - 1) for part, where in ((width, draw[2]), (height, draw[3]))]
    maps = torch.stack([width, zero, middle[0], zero, height, middle[1]], 1).view(-1, 2, 3)
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    out = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return out.clamp(0, 1)  # a cubic overshoots


def _turn(x: Tensor, angle: float, scaling: float) -> Tensor:
    draw = torch.rand(2, len(x), device=x.device) * 2 - 1
    scale = 1 / (1 + scaling * draw[1])
    cosine, sine = (draw[0] * angle).cos() * scale, (draw[0] * angle).sin() * scale
    zero = torch.zeros_like(cosine)
    maps = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    # Rounding in the interpolation may exceed 1 by one bit.
    return F.grid_sample(x, grid, align_corners=False).clamp(0, 1)

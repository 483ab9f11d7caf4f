"""Data augmentation of a batch on its device: random rotations, scales, crops and flips."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from robench.training.recipe import Recipe


def augment(x: Tensor, recipe: Recipe) -> Tensor:
    """Augment every image with the settings of `recipe`; pixels outside the image are black.

    Args:
        x: (N, C, H, W) in [0, 1].

    Returns:
        Images of the same shape and range.
    """
    if recipe.rotation or recipe.scaling:
        x = _rotate(x, math.radians(recipe.rotation), recipe.scaling)
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
    cropped = padded.gather(2, rows[:, None, :, None].expand(n, c, h, w + 2 * pad))
    return cropped.gather(3, columns[:, None, None, :].expand(n, c, h, w))


def _resized_crop(x: Tensor, min_area: float) -> Tensor:
    """Crop a random rectangle of each image and resize it by bicubic interpolation.

    The area is uniform in [min_area, 1] and the logarithm of the aspect ratio is uniform, as in Szegedy et al.,
    arXiv 1409.4842, section 6. Our choice: a side longer than the image is shortened to the image's side.
    """
    draws = torch.rand(4, len(x), device=x.device)
    area = min_area + (1 - min_area) * draws[0]
    aspect = ((2 * draws[1] - 1) * math.log(4 / 3)).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    zero = torch.zeros_like(area)
    center_x, center_y = (1 - width) * (2 * draws[2] - 1), (1 - height) * (2 * draws[3] - 1)
    theta = torch.stack([width, zero, center_x, zero, height, center_y], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    out = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return out.clamp(0, 1)  # bicubic interpolation overshoots


def _rotate(x: Tensor, angle: float, scaling: float) -> Tensor:
    draws = torch.rand(2, len(x), device=x.device) * 2 - 1
    scale = 1 / (1 + scaling * draws[1])
    cosine, sine = (draws[0] * angle).cos() * scale, (draws[0] * angle).sin() * scale
    zero = torch.zeros_like(cosine)
    theta = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    # Rounding errors of the interpolation may exceed 1.
    return F.grid_sample(x, grid, align_corners=False).clamp(0, 1)

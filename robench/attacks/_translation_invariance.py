"""Evading defenses to transferable adversarial examples by translation-invariant attacks.

Dong et al. 2019, arXiv 1904.02884: the gradient averaged over shifts of an image is approximated by the gradient at the
image, convolved with a kernel.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def smoothed(grad: Tensor, shift: int) -> Tensor:
    """Convolve `grad` (S, C, H, W) with a Gaussian kernel of 2 * shift + 1 pixels a side.

    The standard deviation is shift / sqrt(3), as in the paper (section 3.3); the border is zero-padded.
    """
    place = torch.arange(-shift, shift + 1, device=grad.device, dtype=grad.dtype)
    line = (-place.square() / (2 * (shift / math.sqrt(3)) ** 2)).exp()
    line = line / line.sum()
    # The kernel is separable, and channels are treated as separate images.
    flat = grad.flatten(0, 1)[:, None]
    flat = functional.conv2d(flat, line.view(1, 1, -1, 1), padding=(shift, 0))
    flat = functional.conv2d(flat, line.view(1, 1, 1, -1), padding=(0, shift))
    return flat.view_as(grad)

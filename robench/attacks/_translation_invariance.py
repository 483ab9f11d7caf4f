"""Evading defenses to transferable adversarial examples by translation-invariant attacks.

Dong et al. 2019, arXiv 1904.02884: the gradient over all shifts of an image is nearly the gradient of the image
itself, convolved with a kernel.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def smoothed(grad: Tensor, shift: int) -> Tensor:
    """`grad` (S, C, H, W) convolved with the Gaussian kernel of 2 * shift + 1 pixels a side.

    Its deviation is shift / sqrt(3), as in the paper (section 3.3); beyond the border there is no gradient.
    """
    place = torch.arange(-shift, shift + 1, device=grad.device, dtype=grad.dtype)
    line = (-place.square() / (2 * (shift / math.sqrt(3)) ** 2)).exp()
    line = line / line.sum()
    # The kernel is a product of two lines, and channels are images of their own here.
    flat = grad.flatten(0, 1)[:, None]
    flat = functional.conv2d(flat, line.view(1, 1, -1, 1), padding=(shift, 0))
    flat = functional.conv2d(flat, line.view(1, 1, 1, -1), padding=(0, shift))
    return flat.view_as(grad)

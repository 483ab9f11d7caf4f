"""Copies of images from the host to a device."""

import numpy as np
import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; the host does not wait for CUDA to finish the copy."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def sent_bytes(pixels: np.ndarray, device: torch.device) -> Tensor:
    """Images (N, H, W, 3) uint8 as (N, 3, H, W) float32 in [0, 1] on the device. They cross as bytes."""
    # Copied because arrays from other processes may be read-only, and torch needs writable ones.
    x = torch.from_numpy(pixels.copy())
    if device.type == "cpu":
        return x.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    # Looked up, because devices round a division by 255 differently.
    values = (torch.arange(256) / 255).to(device).index_select(0, sent(x, device).flatten().int())
    return values.view(x.shape).permute(0, 3, 1, 2).contiguous()

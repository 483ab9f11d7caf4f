"""Images to corrupt: smooth with edges, more similar to real images than noise."""

import numpy as np
import torch

from robench.data import Images


def scene(seed: int = 0, side: int = 32) -> np.ndarray:
    """A color gradient with a darker band and some noise, (side, side, 3) uint8."""
    generator = np.random.default_rng(seed)
    slope = np.linspace(20, 220, side)[:, None, None] * generator.uniform(0.4, 1, 3)
    slope = slope * np.linspace(0.6, 1, side)[None, :, None]
    slope[:, side // 3 : side // 2] *= 0.5
    return (slope + generator.normal(0, 3, (side, side, 1))).clip(0, 255).round().astype(np.uint8)


def some(n: int = 5, side: int = 32) -> Images:
    """A dataset of such images with two classes; ids differ from positions."""
    pixels = np.stack([scene(i, side) for i in range(n)])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return Images("scenes", "test", x, torch.arange(n) % 2, torch.arange(n) * 3, ("a", "b"))

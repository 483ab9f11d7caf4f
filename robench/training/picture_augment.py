"""Augmentations of a stage that timm and torchvision implement, with the settings of their published uses.

They are applied to single pictures of 8 bits, and mixup and CutMix to whole batches.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import pil_to_tensor

from robench.core.errors import UsageError
from robench.training.draws import seeded


@dataclass(frozen=True)
class Augmentation:
    """Augmentations of one stage, in addition to those of the recipe; see `Finetuning` for the fields."""

    randaugment: str = ""
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    classes: int = 0

    @property
    def of_pictures(self) -> bool:
        """Whether single pictures are changed."""
        return bool(self.randaugment or self.erasing)

    def change(self, picture: Image.Image, side: int, smallest_crop: float) -> Tensor:
        """A training image (3, side, side) in [0, 1], from a picture.

        Args:
            smallest_crop: smallest fraction of the picture's area in a random resized crop; 0 for no crop.
        """
        if smallest_crop:
            picture = _crop(side, smallest_crop)(picture)
        if self.randaugment:
            picture = randaugment(self.randaugment, side)(picture)
        x = pil_to_tensor(picture).float() / 255
        # Erased rectangles are filled with normal noise, which is cut to the range of an image.
        return _erasing(self.erasing)(x).clamp(0, 1) if self.erasing else x

    def mix(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images of a batch with each other, and their labels to (N, K), by mixup or CutMix with equal chances.

        Raises:
            UsageError: if the number of images is odd.
        """
        if not (self.mixup or self.cutmix):
            return x, y
        if len(x) % 2:
            raise UsageError(f"mixup and cutmix need batches of an even number of images: got {len(x)}")
        with seeded(int(torch.randint(2**62, ()))):
            mixup: Any = Mixup(self.mixup, self.cutmix, label_smoothing=0.0, num_classes=self.classes)
            return mixup(x, y)


@cache
def randaugment(text: str, side: int) -> Any:
    """timm's RandAugment, such as "rand-m9-mstd0.5-inc1"; uncovered pixels are black.

    Raises:
        UsageError: if the text is not a configuration of RandAugment.
    """
    try:
        settings = {"translate_const": int(side * 0.45), "img_mean": (0, 0, 0)}
        transform = rand_augment_transform(text, {**settings, "interpolation": Image.Resampling.BICUBIC})
    except (AssertionError, ValueError, KeyError) as error:
        raise UsageError(
            f'randaugment = "{text}": expected a configuration of timm, such as "rand-m9-mstd0.5-inc1"'
        ) from error
    for op in transform.ops:
        if op.name.startswith("Posterize"):
            op.aug_fn = _posterize
    return transform


def _posterize(picture: Image.Image, bits: int, **settings: Any) -> Image.Image:
    """Keep this number of bits of every channel. timm may ask for none, which recent releases of Pillow refuse."""
    if bits >= 8:
        return picture
    return ImageOps.posterize(picture, bits) if bits else picture.point(lambda value: 0)


@cache
def _crop(side: int, smallest: float) -> RandomResizedCrop:
    return RandomResizedCrop(side, (smallest, 1.0), interpolation=InterpolationMode.BICUBIC)


@cache
def _erasing(probability: float) -> RandomErasing:
    return RandomErasing(probability, mode="pixel", device="cpu")

"""Let purifiers that are trained on one image size handle other sizes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from robench._moved import old_names
from robench.core.rng import parts
from robench.defenses._base import Purifier
from robench.defenses._patches import patchify, unpatchify

SIZE_MODES = ("exact", "tile", "interpolate", "resize")


class FixedSizePurifier(Purifier):
    """Base class of purifiers that are trained on one image size; subclasses implement `purify`, not `forward`.

    Attributes:
        image_size: side of the training images.
        step: `purify` takes images whose side is a multiple of this.
        size_mode: how images of another size are handled. "exact": they are refused. "tile": they are cut into tiles of
            `image_size`, which are purified separately and reassembled. "interpolate": the network runs on the whole
            image, at more or fewer positions than in training; a transformer's position embeddings are resized.
            "resize": images are scaled bilinearly to `image_size`, purified and scaled back, as DiffPure does with
            224 px images and a 256 px network.

    Raises:
        ValueError: for an unknown `size_mode`.
    """

    image_size: int
    step: int

    def __init__(self, image_size: int, step: int, size_mode: str):
        super().__init__()
        if size_mode not in SIZE_MODES:
            raise ValueError(f"{size_mode=}: expected one of {', '.join(SIZE_MODES)}")
        # Never None and never reassigned.
        self.image_size = image_size  # pyright: ignore[reportIncompatibleVariableOverride]
        self.step, self.size_mode = step, size_mode

    def purify(self, x: Tensor) -> Tensor:
        """Purify a batch whose side is a multiple of `step`, (N, 3, S, S) in [0, 1]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Purify images (N, 3, S, S) in [0, 1].

        Raises:
            ValueError: for an image size that `check` refuses.
        """
        self.check(x.shape[-1])
        rows = self.cut(x)
        if rows is x:
            return self.purify(x)
        count = len(rows) // len(x)
        with parts(count):
            clean = self.purify(rows)
        if self.size_mode == "resize":
            return _scaled(clean, x.shape[-1])
        return unpatchify(clean.reshape(len(x), count, -1), self.image_size)

    def cut(self, x: Tensor) -> Tensor:
        """The input of `purify` for `x`, (N, C, S, S): `x`, its tiles, (N * tiles, C, s, s), or `x` scaled."""
        size = self.image_size
        if x.shape[-1] == size or self.size_mode not in ("tile", "resize"):
            return x
        if self.size_mode == "resize":
            return _scaled(x, size)
        return patchify(x, size).reshape(-1, x.shape[1], size, size)

    def check(self, side: int) -> None:
        """See `Purifier.check`."""
        if self.size_mode == "resize":
            return
        size, step = self.image_size, self.step
        if self.size_mode == "exact" and side != size:
            raise ValueError(
                f"this purifier takes images of {size} px, not of {side} px: "
                f'size_mode="tile" takes multiples of {size} px, size_mode="interpolate" of {step} px, '
                'size_mode="resize" any'
            )
        step = size if self.size_mode == "tile" else step
        if side < step or side % step:
            raise ValueError(
                f'size_mode="{self.size_mode}" takes images of a multiple of {step} px, not of {side} px'
            )


def _scaled(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


def resized(positions: Tensor, side: int) -> Tensor:
    """Resize positions, (1, 1 + patches, D), to a grid of `side` x `side` patches, bicubically as in MAE; unchanged if
    the grid has that size."""
    size = round((positions.shape[1] - 1) ** 0.5)
    if size == side:
        return positions
    grid = positions[:, 1:].unflatten(1, (size, size)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)


# Names of release 0.1.
__getattr__ = old_names(__name__)

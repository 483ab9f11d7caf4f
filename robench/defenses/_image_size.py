"""How a purifier of images of one size takes images of another: one mechanism for all of them."""

import torch
from torch import Tensor
from torch.nn import functional as F

from robench._moved import old_names
from robench.core.rng import parts
from robench.defenses._base import Purifier
from robench.defenses._patches import patchify, unpatchify

SIZE_MODES = ("exact", "tile", "interpolate", "resize")


class FixedSizePurifier(Purifier):
    """Base of the purifiers that are trained on images of one size; a subclass gives `purify`, and not `forward`.

    Attributes:
        image_size: side of the images it is trained on.
        step: `purify` takes images whose side is a multiple of this.
        size_mode: how images of another size are handled. "exact": they are refused. "tile": they are cut into tiles of
            `image_size`, which are purified separately and reassembled. "interpolate": the network runs on the whole
            image, at more or fewer positions than in training; a transformer's position embeddings are resized.
            "resize": they are scaled bilinearly to `image_size`, purified and scaled back, as DiffPure does with
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
        # Never None, and never set again.
        self.image_size = image_size  # pyright: ignore[reportIncompatibleVariableOverride]
        self.step, self.size_mode = step, size_mode

    def purify(self, x: Tensor) -> Tensor:
        """The purified images of a batch whose side `step` divides, (N, 3, S, S) in [0, 1]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The purified images, (N, 3, S, S) in [0, 1].

        Raises:
            ValueError: for a side that `check` refuses.
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
        """What `purify` is called on: `x`, (N, C, S, S), its tiles, (N * tiles, C, s, s), or it scaled."""
        own = self.image_size
        if x.shape[-1] == own or self.size_mode not in ("tile", "resize"):
            return x
        if self.size_mode == "resize":
            return _scaled(x, own)
        return patchify(x, own).reshape(-1, x.shape[1], own, own)

    def check(self, side: int) -> None:
        """See `Purifier.check`."""
        if self.size_mode == "resize":
            return
        own, step = self.image_size, self.step
        if self.size_mode == "exact" and side != own:
            raise ValueError(
                f"this purifier takes images of {own} px, not of {side} px: "
                f'size_mode="tile" takes multiples of {own} px, size_mode="interpolate" of {step} px, '
                'size_mode="resize" any'
            )
        step = own if self.size_mode == "tile" else step
        if side < step or side % step:
            raise ValueError(
                f'size_mode="{self.size_mode}" takes images of a multiple of {step} px, not of {side} px'
            )


def _scaled(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


def resized(positions: Tensor, side: int) -> Tensor:
    """Positions, (1, 1 + patches, D), for a grid of `side` patches a side, bicubically as MAE resizes them; the same
    ones where it is theirs."""
    own = round((positions.shape[1] - 1) ** 0.5)
    if own == side:
        return positions
    grid = positions[:, 1:].unflatten(1, (own, own)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)


# Names of release 0.1.
__getattr__ = old_names(__name__)

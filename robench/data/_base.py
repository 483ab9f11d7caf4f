"""What a data set gives: images in canonical order, with where they came from."""

import hashlib
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Some images of a data set.

    Attributes:
        name, split: where they come from.
        x: (N, 3, H, W) float32 in [0, 1].
        y: (N,) int64.
        ids: index of each in the data set's canonical order, (N,) int64.
        classes: the names of the classes, K of them.
    """

    name: str
    split: str
    x: Tensor
    y: Tensor
    ids: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def digest(self) -> str:
        """sha256 over the pixels, labels and ids used."""
        digest = hashlib.sha256()
        for tensor in (self.x, self.y, self.ids):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def first(self, n: int) -> "Images":
        """The first `n` of them."""
        return Images(self.name, self.split, self.x[:n], self.y[:n], self.ids[:n], self.classes)

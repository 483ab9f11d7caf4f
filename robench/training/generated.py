"""Generated images in training: a fixed fraction of each batch, such as the images of EDM that MIMIR trains with."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robench.core.errors import ResourceError, UsageError
from robench.data import _numpy_files
from robench.data._base import Images
from robench.data._lazy_images import LazyImages, lazily


@dataclass(frozen=True)
class Mixture:
    """Batches of the first `real` images of a set and of its other, generated images.

    Attributes:
        real: number of real images, which an epoch's number of steps follows from.
        share: fraction of generated images in a batch.
    """

    real: int
    share: float

    def order(self, total: int, size: int) -> Tensor:
        """The images of an epoch's batches of `size`, in random order within each batch, from torch's generator.

        As in the official code, real images are drawn without and generated ones with replacement, and the number of
        generated images in a batch is rounded down.
        """
        steps, generated = self.real // size, int(size * self.share)
        real = torch.randperm(self.real)[: steps * (size - generated)].view(steps, -1)
        others = torch.randint(self.real, total, (steps, generated))
        batches = torch.cat([real, others], 1)
        return batches.gather(1, torch.rand(batches.shape).argsort(1)).flatten()


class Joined(LazyImages):
    """Two sets of images one after the other."""

    def __init__(self, first: LazyImages, second: LazyImages):
        super().__init__((len(first) + len(second), *first.shape[1:]))
        self._first, self._second = first, second

    def _read(self, rows: list[int]) -> Tensor:
        n = len(self._first)
        x = torch.empty(len(rows), *self.shape[1:])
        for images, start in ((self._first, 0), (self._second, n)):
            places = [k for k, row in enumerate(rows) if (row >= n) == bool(start)]
            if places:
                x[places] = images[[rows[k] - start for k in places]]
        return x


def with_generated(images: Images, path: Path) -> tuple[LazyImages, Tensor, str]:
    """Real images followed by generated ones, their labels, and the digest of all.

    Args:
        path: a NumPy archive with the arrays `image`, (N, H, W, 3) uint8, and `label`, (N,), as published for EDM
            (Wang et al., "Better Diffusion Models Further Improve Adversarial Training", arXiv 2302.04638).

    Raises:
        ResourceError: if the file is missing or damaged, or has other content.
        UsageError: if its images have another size.
    """
    arrays = _numpy_files.read_archive(path, ("label",), (), present=("image",))
    y = _numpy_files.labels(arrays["label"], path, len(images.classes))
    count = _numpy_files.rows(path, "image")
    if len(y) != count or not count:
        raise ResourceError(f"{path}: {count} images and {len(y)} labels: expected equal numbers, at least 1")
    x = _numpy_files.member_pixels(path, "image", None)
    if x.shape[1:] != torch.Size(images.x.shape[1:]):
        sizes = f"{tuple(x.shape[1:])}, but those of {images.name} of shape {tuple(images.x.shape[1:])}"
        raise UsageError(f"{path} has images of shape {sizes}")
    generated = Images(str(path), "train", x, y, torch.arange(count), images.classes)
    joined = Joined(lazily(images.x), x)
    return joined, torch.cat([images.y, y]), f"{images.digest} {generated.digest}"

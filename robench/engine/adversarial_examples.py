"""Adversarial examples, which are in memory until they are saved and then only on disk."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robench.core.errors import ResourceError


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of images.

    Attributes:
        begin: byte offset of the first image.
        shape: shape of one image, (C, H, W); float32.
    """

    file: Path
    begin: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, file: Path, header: bytes) -> "Shard":
        """The shard of the tensor `image` in a safetensors file.

        Args:
            header: the beginning of the file, at least its safetensors header.
        """
        length = int.from_bytes(header[:8], "little")
        entry = json.loads(header[8 : 8 + length])["image"]
        return cls(file, 8 + length + entry["data_offsets"][0], tuple(entry["shape"][1:]))

    def read(self, row: int) -> Tensor:
        """Read one image, (C, H, W).

        Raises:
            ResourceError: if the file is missing or damaged.
        """
        count = math.prod(self.shape)
        try:
            image = np.fromfile(self.file, np.float32, count, offset=self.begin + 4 * count * row)
        except OSError:
            image = np.empty(0, np.float32)
        if len(image) != count:
            raise ResourceError(f"{self.file} is missing or damaged: repeat the run with --fresh")
        return torch.from_numpy(image).view(self.shape)


@dataclass(frozen=True, slots=True)
class Place:
    """The location of a saved image: a file and its row."""

    shard: Shard
    row: int

    def read(self) -> Tensor:
        """Read the image, (C, H, W).

        Raises:
            ResourceError: if the file is missing or damaged.
        """
        return self.shard.read(self.row)


class AdversarialExamples(Mapping[int, Tensor]):
    """The adversarial example, (C, H, W), of each fooled sample.

    Attributes:
        fresh: images that are not saved yet.
    """

    def __init__(self, saved: Mapping[int, Place] | None = None):
        self.fresh: dict[int, Tensor] = {}
        self._saved = dict(saved or {})

    @classmethod
    def together(cls, parts: Iterable["AdversarialExamples"]) -> "AdversarialExamples":
        """Merge the examples of all shares of a run."""
        merged = cls()
        for part in parts:
            merged.fresh |= part.fresh
            merged._saved |= part._saved
        return merged

    def __setitem__(self, sample: int, image: Tensor) -> None:
        self.fresh[sample] = image

    def __getitem__(self, sample: int) -> Tensor:
        return self.fresh[sample] if sample in self.fresh else self._saved[sample].read()

    def __iter__(self) -> Iterator[int]:
        return iter(self.fresh.keys() | self._saved.keys())

    def __len__(self) -> int:
        return len(self.fresh.keys() | self._saved.keys())

    @property
    def nbytes(self) -> int:
        """Size of the unsaved images in bytes."""
        return sum(image.nbytes for image in self.fresh.values())

    def let_go(self, places: Mapping[int, Place]) -> None:
        """Remove images that have been saved at `places` from memory."""
        self._saved |= places
        for sample in places:
            del self.fresh[sample]

"""Adversarial examples: in memory until they are saved, then on disk only."""

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
        shape: of one image, (C, H, W); float32.
    """

    file: Path
    begin: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, file: Path, header: bytes) -> "Shard":
        """The tensor `image` of a safetensors file.

        Args:
            header: the beginning of the file, at least its safetensors header.
        """
        length = int.from_bytes(header[:8], "little")
        entry = json.loads(header[8 : 8 + length])["image"]
        return cls(file, 8 + length + entry["data_offsets"][0], tuple(entry["shape"][1:]))

    def read(self, row: int) -> Tensor:
        """One image.

        Raises:
            ResourceError: when the file is missing or damaged.
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
    """The location of a saved image: a row of a file."""

    shard: Shard
    row: int

    def read(self) -> Tensor:
        """The image, (C, H, W).

        Raises:
            ResourceError: when the file is missing or damaged.
        """
        return self.shard.read(self.row)


class AdversarialExamples(Mapping[int, Tensor]):
    """The image that fools the defense, (C, H, W), of each sample that has one.

    Attributes:
        fresh: the images that are not saved yet.
    """

    def __init__(self, saved: Mapping[int, Place] | None = None):
        self.fresh: dict[int, Tensor] = {}
        self._saved = dict(saved or {})

    @classmethod
    def together(cls, parts: Iterable["AdversarialExamples"]) -> "AdversarialExamples":
        """The examples of all processes that share the samples."""
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
        """Bytes of the unsaved images."""
        return sum(image.nbytes for image in self.fresh.values())

    def let_go(self, places: Mapping[int, Place]) -> None:
        """Drop the fresh images that have been saved at `places`."""
        self._saved |= places
        for sample in places:
            del self.fresh[sample]

"""Train splits too large to decode: pictures that are read and decoded each time they are used."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from robench.core.errors import ResourceError
from robench.data import _image_files, _parquet
from robench.data import preprocessing as preprocessings
from robench.data._image_files import Blob
from robench.data._lazy_images import LazyImages

# Row groups of parquet files that are shuffled together, and that a process keeps in memory.
WINDOW = 16


class Source(Protocol):
    """Encoded pictures by row.

    Attributes:
        groups: number of consecutive rows that are read together, (G,) int64; empty if every row is read alone.
    """

    groups: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Path | Blob: ...

    def identity(self) -> bytes:
        """Bytes that distinguish these pictures from others without reading them."""
        ...


class Pictures(LazyImages):
    """Pictures that are decoded on access, with the interface of `LazyImages`.

    Args:
        source: the encoded pictures.
        preprocessing: see `robench.data.preprocessing`.
        name: name of the dataset, for messages.

    Raises:
        ResourceError: if the first picture is missing, damaged or too small.
    """

    def __init__(self, source: Source, preprocessing: str, name: str):
        self.source, self.name = source, name
        self._steps = preprocessings.parse(preprocessing)
        side = preprocessings.side(preprocessing)
        first = self.changed(0).size[::-1]
        super().__init__((len(source), 3, *((side, side) if side else first)))

    def picture(self, row: int) -> Image.Image:
        """A whole picture, RGB, before the preprocessing.

        Raises:
            ResourceError: if it is missing, damaged or too small for the preprocessing.
        """
        source = self.source[row]
        picture = _image_files.opened(source, 3, self._steps.smallest)
        if isinstance(picture, str):
            raise ResourceError(f"{source}, an image of {self.name}, cannot be used ({picture}): restore it")
        return picture

    def changed(self, row: int) -> Image.Image:
        """A picture after the preprocessing."""
        return self._steps.change(self.picture(row))

    def order(self) -> Tensor:
        """A random order of the rows from torch's generator.

        Rows that are read together are shuffled in windows of 16 groups, so that they stay close.
        """
        groups = torch.from_numpy(self.source.groups)
        if not len(groups):
            return torch.randperm(len(self))
        shuffled = torch.randperm(len(groups))
        starts = groups.cumsum(0) - groups
        rows = torch.cat([torch.arange(int(groups[g])) + int(starts[g]) for g in shuffled])
        window = torch.arange(len(groups)).div(WINDOW, rounding_mode="floor")
        place = window.repeat_interleave(groups[shuffled]).double() + torch.rand(len(rows)).double()
        rows = rows[place.argsort(stable=True)]
        return rows[rows < len(self)]

    def first(self, n: int) -> "Pictures":
        """The first `n` pictures."""
        part = object.__new__(Pictures)
        part.__dict__.update(self.__dict__)
        LazyImages.__init__(part, (n, *self.shape[1:]))
        return part

    def identity(self) -> bytes:
        """Bytes that distinguish these pictures from others without decoding them."""
        return self.source.identity() + repr(tuple(self.shape)).encode()

    def _read(self, rows: list[int]) -> Tensor:
        x = np.stack([np.asarray(self.changed(row)) for row in rows]) if rows else np.empty((0, *self._hwc))
        return torch.from_numpy(np.moveaxis(x, 3, 1) / np.float32(255))

    @property
    def _hwc(self) -> tuple[int, ...]:
        channels, *size = self.shape[1:]
        return (*size, channels)


def as_picture(x: Tensor) -> Image.Image:
    """An image (3, H, W) in [0, 1] as a picture of 8 bits."""
    return Image.fromarray(x.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


class Folder:
    """Image files with one folder for each class; rows alternate between classes.

    Paths are stored as bytes, about 40 per picture.

    Args:
        folder: contains the folders of the classes.
        names: names of the files, (N,) bytes; labels: index of each file's class, (N,).
        classes: names of the folders.
    """

    groups = np.empty(0, np.int64)

    def __init__(self, folder: Path, classes: Sequence[str], names: np.ndarray, labels: np.ndarray):
        self.folder, self.classes = folder, classes
        self.names, self.labels = names, labels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> Path:
        return self.folder / self.classes[int(self.labels[row])] / os.fsdecode(self.names[row])

    def identity(self) -> bytes:
        return hashlib.sha256(self.names.tobytes() + self.labels.tobytes()).digest()


def list_folder(folder: Path, name: str) -> Folder:
    """List the pictures of `folder/<class>/<picture>`: the first of every class, then the second of every class, ...

    Raises:
        ResourceError: if it cannot be read, has no folders, or these hold anything except images.
    """
    classes: list[str] = []
    unusable: list[Path] = []
    names, labels, places = [], [], []
    try:
        folders = sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
        for k, inner in enumerate(folders):
            files = sorted(e.name for e in os.scandir(folder / inner) if not e.name.startswith("."))
            wrong = [f for f in files if Path(f).suffix.lower() not in _image_files.SUFFIXES]
            unusable += [folder / inner / file for file in wrong] + ([] if files else [folder / inner])
            classes.append(inner)
            names.append(np.array([os.fsencode(file) for file in files], dtype=np.bytes_))
            labels.append(np.full(len(files), k))
            places.append(np.arange(len(files)))
    except OSError as error:
        raise ResourceError(f"{error.filename}: {error.strerror}: {name} needs a readable folder") from error
    _image_files.check_usable(classes, unusable, folder, name)
    order = np.lexsort((np.concatenate(labels), np.concatenate(places)))
    return Folder(folder, classes, np.concatenate(names)[order], np.concatenate(labels)[order])


class Parquet:
    """Pictures in parquet files; the row groups that were read last stay in memory.

    Args:
        table: the files.
    """

    def __init__(self, table: _parquet.Table):
        self.table = table
        parts: list[tuple[int, int]] = []  # the file and the row group
        sizes: list[int] = []
        for number, file in enumerate(table.files):
            with pq.ParquetFile(file) as opened:
                count = opened.metadata.num_row_groups
                parts += [(number, group) for group in range(count)]
                sizes += [opened.metadata.row_group(group).num_rows for group in range(count)]
        self._parts = parts
        self.groups = np.array(sizes, np.int64)
        self._ends = self.groups.cumsum()
        self._read: OrderedDict[int, list[Any]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> Blob:
        group = int(np.searchsorted(self._ends, row, "right"))
        if group in self._read:
            self._read.move_to_end(group)
        else:
            self._read[group] = self._load(group)
            if len(self._read) > WINDOW:
                self._read.popitem(last=False)
        number = row - int(self._ends[group] - self.groups[group])
        return Blob(f"{self.table.files[self._parts[group][0]]} row group {group}", self._read[group][number])

    def identity(self) -> bytes:
        return hashlib.sha256(repr([(f.name, f.stat().st_size) for f in self.table.files]).encode()).digest()

    def _load(self, group: int) -> list[Any]:
        number, inner = self._parts[group]
        return self.table.group(self.table.files[number], inner)

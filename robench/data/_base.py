"""Loaded images of a dataset, and helpers for datasets that are read from files."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from robench._moved import old_arguments
from robench.core.cache import home_cache
from robench.core.errors import ResourceError, UsageError
from robench.data._lazy_images import LazyImages
from robench.data.class_subset import Subset

Builder = TypeVar("Builder", bound=Callable[..., Any])
# Number of images read at a time when iterating over all.
_PART = 64


def default_root() -> Path:
    """The default folder of datasets: the environment variable ROBENCH_DATA, or ~/.cache/robench."""
    return Path(os.environ.get("ROBENCH_DATA") or home_cache())


def data_root(data_dir: str | None) -> Path:
    """The folder given with `--data-dir`, or the default one."""
    return Path(data_dir).expanduser() if data_dir else default_root()


@dataclass(frozen=True)
class Facts:
    """Facts about a dataset that are known without its files.

    Attributes:
        layout: layout of its files in the data folder, or their origin; `<...>` marks variable parts.
        source: where to download the files.
        needs_files: whether it needs files; False for a dataset that comes with an installed package.
    """

    layout: str
    source: str = ""
    needs_files: bool = True

    def of(self, **values: object) -> "Facts":
        """Fill in variable parts of the layout: `of(corruption="fog")` replaces `<corruption>`."""
        layout = self.layout
        for name, value in values.items():
            layout = layout.replace(f"<{name}>", str(value))
        return replace(self, layout=layout)


def described(facts: Facts) -> Callable[[Builder], Builder]:
    """Decorator that attaches facts to a builder, for `robench list datasets`."""

    def decorate(builder: Builder) -> Builder:
        builder.__dict__["facts"] = facts
        return builder

    return decorate


def find(name: str, data_dir: str | None, places: tuple[str, ...], facts: Facts) -> Path:
    """The first of `places`, files or folders below the data folder, that exists.

    Raises:
        ResourceError: if there is none, with the expected layout and the content of the folder.
    """
    root = data_root(data_dir)
    for place in places:
        if (root / place).exists():
            return root / place
    source = f"get it from {facts.source}, or " if facts.source else ""
    raise ResourceError(
        f"{name} is not under {root}: expected {facts.layout} there, found {_content(root)}; {source}pass the folder "
        "that contains it with --data-dir"
    )


def _content(folder: Path) -> str:
    """The first few names in a folder, for messages."""
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        return f"nothing ({(error.strerror or str(error)).lower()})"
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return (", ".join(names[:4]) + more) or "an empty folder"


def check_split(name: str, split: str, known: tuple[str, ...] = ("train", "test")) -> None:
    """Refuse a split that dataset `name` does not have."""
    if split not in known:
        raise UsageError(f'{name} has no split "{split}": expected {" or ".join(known)}')


def check_channels(channels: int) -> None:
    """Refuse a number of channels except 1 and 3."""
    if channels not in (3, 1) or isinstance(channels, bool):
        raise UsageError(f"channels={channels}: expected 3, or 1 for gray images")


@old_arguments(among="class_subset")
@dataclass(frozen=True)
class Images:
    """Images of a dataset, with their labels.

    Attributes:
        name: canonical spec of the dataset.
        split: "train" or "test".
        x: images, (N, C, H, W) float32 in [0, 1]. For datasets of image files a `LazyImages`, which is indexed like a
            tensor and reads images on access; `x[:]` reads all of them.
        y: labels, (N,) int64.
        ids: index of each image in the canonical order of the dataset, (N,) int64.
        classes: names of the K classes.
        class_subset: for networks with more than these K classes, the indices of the K logits to use; None if networks
            have exactly K classes.
    """

    name: str
    split: str
    x: Tensor | LazyImages
    y: Tensor
    ids: Tensor
    classes: tuple[str, ...]
    class_subset: Subset | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.x.shape[-1]

    @cached_property
    def digest(self) -> str:
        """sha256 of pixels, labels and ids; of file names instead of pixels if images are decoded on access."""
        digest = hashlib.sha256()
        if isinstance(self.x, LazyImages) and (identity := self.x.identity()):
            digest.update(identity + self.y.numpy().tobytes() + self.ids.numpy().tobytes())
            return digest.hexdigest()
        for tensor in chain(self.x.split(_PART), (self.y, self.ids)):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def first(self, n: int) -> "Images":
        """The first `n` images."""
        x = self.x[:n] if isinstance(self.x, Tensor) else self.x.first(n)
        return replace(self, x=x, y=self.y[:n], ids=self.ids[:n])

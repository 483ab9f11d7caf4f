"""What a data set gives: images in canonical order, with where they came from."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from robench.core.cache import home_cache
from robench.core.errors import ResourceError, UsageError
from robench.data._lazy_images import LazyImages, PixelFile
from robench.data.class_subset import Subset

Builder = TypeVar("Builder", bound=Callable[..., Any])
# Images read at a time where all of them are gone through.
_PART = 64


def default_root() -> Path:
    """Where data sets are looked for and put: the variable ROBENCH_DATA, or ~/.cache/robench."""
    return Path(os.environ.get("ROBENCH_DATA") or home_cache())


def data_root(data_dir: str | None) -> Path:
    """The folder that `--data-dir` names, or the default one."""
    return Path(data_dir).expanduser() if data_dir else default_root()


@dataclass(frozen=True)
class Facts:
    """What can be said of a data set without its files.

    Attributes:
        layout: of its files below the data folder, or where they are from; `<...>` stands for what varies.
        source: where a person gets them.
        needs_files: False for a data set that is installed with a package.
    """

    layout: str
    source: str = ""
    needs_files: bool = True

    def of(self, **values: object) -> "Facts":
        """The same where something varies no more: `of(corruption="fog")` for `<corruption>`."""
        layout = self.layout
        for name, value in values.items():
            layout = layout.replace(f"<{name}>", str(value))
        return replace(self, layout=layout)


def described(facts: Facts) -> Callable[[Builder], Builder]:
    """Decorator that says a builder's facts, for `robench list datasets`."""

    def decorate(builder: Builder) -> Builder:
        builder.__dict__["facts"] = facts
        return builder

    return decorate


def facts_of(builder: Any) -> Facts:
    """What `described` has said of a builder; empty where it has not."""
    return getattr(builder, "facts", Facts(""))


def find(name: str, data_dir: str | None, places: tuple[str, ...], facts: Facts) -> Path:
    """The first of `places`, files or folders below the data folder, that is there.

    Raises:
        ResourceError: when none is, saying where data set `name` was looked for, and what is there.
    """
    root = data_root(data_dir)
    for place in places:
        if (root / place).exists():
            return root / place
    source = f"get it from {facts.source}, or " if facts.source else ""
    raise ResourceError(
        f"{name} is not under {root}: expected {facts.layout} there, found {_content(root)}; {source}give the folder "
        "that holds it with --data-dir"
    )


def _content(folder: Path) -> str:
    """The first few names in a folder, for messages."""
    try:
        names = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    except OSError as error:
        return f"nothing ({(error.strerror or str(error)).lower()})"
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return (", ".join(names[:4]) + more) or "an empty folder"


def check_split(name: str, split: str, known: tuple[str, ...] = ("train", "test")) -> None:
    """Refuse a split that data set `name` does not have.

    Raises:
        UsageError: naming those it has.
    """
    if split not in known:
        raise UsageError(f'{name} has no split "{split}": expected {" or ".join(known)}')


def check_channels(channels: int) -> None:
    """Refuse a number of channels that images do not have.

    Raises:
        UsageError: for anything but 3 and 1.
    """
    if channels not in (3, 1) or isinstance(channels, bool):
        raise UsageError(f"channels={channels}: expected 3, or 1 for grey images")


@dataclass(frozen=True)
class Images:
    """Some images of a data set.

    Attributes:
        name, split: where they come from.
        x: (N, C, H, W) float32 in [0, 1]; of data sets of picture files a `LazyImages`, which is indexed as a tensor
            and reads what is asked for: `x[:]` is all of it.
        y: (N,) int64.
        ids: index of each in the data set's canonical order, (N,) int64.
        classes: the names of the classes, K of them.
        among: which classes of a network that knows more than these K they are; None where a network has just
            these classes.
    """

    name: str
    split: str
    x: Tensor | LazyImages
    y: Tensor
    ids: Tensor
    classes: tuple[str, ...]
    among: Subset | None = None

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def digest(self) -> str:
        """sha256 over the pixels, labels and ids used."""
        digest = hashlib.sha256()
        for tensor in chain(self.x.split(_PART), (self.y, self.ids)):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def first(self, n: int) -> "Images":
        """The first `n` of them."""
        x = self.x.first(n) if isinstance(self.x, PixelFile) else self.x[:n]
        return replace(self, x=x, y=self.y[:n], ids=self.ids[:n])

"""What a data set gives: images in canonical order, with where they came from."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from robench.errors import ResourceError, UsageError


def default_root() -> Path:
    """Where data sets are looked for and put: the variable ROBENCH_DATA, or ~/.cache/robench."""
    return Path(os.environ.get("ROBENCH_DATA") or Path.home() / ".cache" / "robench")


def data_root(data_dir: str | None) -> Path:
    """The folder that `--data-dir` names, or the default one."""
    return Path(data_dir).expanduser() if data_dir else default_root()


def find(name: str, data_dir: str | None, places: tuple[str, ...]) -> Path:
    """The first of `places`, files or folders below the data folder, that is there.

    Raises:
        ResourceError: when none is, saying where data set `name` was looked for.
    """
    root = data_root(data_dir)
    for place in places:
        if (root / place).exists():
            return root / place
    raise ResourceError(
        f"{name} is not under {root}: expected {' or '.join(places)} there; give the folder that holds it with "
        "--data-dir"
    )


def check_split(name: str, split: str, known: tuple[str, ...] = ("train", "test")) -> None:
    """Refuse a split that data set `name` does not have.

    Raises:
        UsageError: naming those it has.
    """
    if split not in known:
        raise UsageError(f'{name} has no split "{split}": expected {" or ".join(known)}')


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

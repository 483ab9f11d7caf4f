"""`cifar10`: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"."""

import contextlib
import os
import sys
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10

from robench import registry
from robench.data._base import Images
from robench.errors import ResourceError, UsageError

FOLDER = CIFAR10.base_folder


def default_root() -> Path:
    """Where data sets are looked for and put: the variable ROBENCH_DATA, or ~/.cache/robench."""
    return Path(os.environ.get("ROBENCH_DATA") or Path.home() / ".cache" / "robench")


@registry.datasets.register("cifar10")
def load(split: str = "test", data_dir: str | None = None) -> Images:
    """32x32 images of ten kinds of things; 50,000 for training and 10,000 for testing.

    Args:
        split: "train" or "test".
        data_dir: the folder that holds `cifar-10-batches-py`; None for `default_root()`. When the files are
            not there they are downloaded into it.

    Raises:
        UsageError: for another split.
        ResourceError: when the files are missing or damaged and cannot be downloaded.
    """
    if split not in ("train", "test"):
        raise UsageError(f'cifar10 has no split "{split}": expected train or test')
    root = Path(data_dir).expanduser() if data_dir else default_root()
    found = _open(root, split == "train")
    x = (
        torch.from_numpy(found.data)
        .permute(0, 3, 1, 2)
        .to(torch.float32, memory_format=torch.contiguous_format)
    )
    y = torch.tensor(found.targets)
    return Images("cifar10", split, x.div_(255), y, torch.arange(len(y)), tuple(found.classes))


def _open(root: Path, train: bool) -> CIFAR10:
    # torchvision answers missing and damaged files alike, by RuntimeError.
    with contextlib.suppress(RuntimeError):
        return CIFAR10(str(root), train=train, download=False)
    try:
        # Some torchvision releases print to stdout, which `--json` keeps for itself.
        with contextlib.redirect_stdout(sys.stderr):
            return CIFAR10(str(root), train=train, download=True)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResourceError(
            f"cifar10 is not whole under {root} and cannot be downloaded ({reason}): put the folder {FOLDER} "
            f"of {CIFAR10.url} there, or give the folder that holds it with --data-dir"
        ) from error

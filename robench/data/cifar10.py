"""`cifar10`: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"."""

import contextlib
import sys
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10

from robench.core import registry
from robench.core.errors import ResourceError
from robench.data._base import Facts, Images, check_split, data_root, default_root, described

__all__ = ["FOLDER", "default_root", "load", "load_whole"]

FOLDER = CIFAR10.base_folder


@registry.datasets.register("cifar10")
@described(Facts(f"{FOLDER}/<batches>, downloaded if missing", CIFAR10.url))
def load(split: str = "test", data_dir: str | None = None, samples: int | None = None) -> Images:
    """CIFAR-10: 32x32 images of 10 classes, 50,000 for training and 10,000 for testing.

    Args:
        split: "train" or "test".
        data_dir: folder that contains `cifar-10-batches-py`; None for `default_root()`. Missing files are downloaded
            into it.
        samples: number of images to load, from the start; None for all.

    Raises:
        UsageError: for another split.
        ResourceError: if the files are missing or damaged and cannot be downloaded.
    """
    return load_whole("cifar10", CIFAR10, split, data_dir, samples)


def load_whole(
    name: str, kind: type[CIFAR10], split: str, data_dir: str | None, samples: int | None
) -> Images:
    """Load a dataset of torchvision, `kind`, under the name `name`; otherwise like `load`."""
    check_split(name, split)
    dataset = _open(name, kind, data_root(data_dir), split == "train")
    x = (
        torch.from_numpy(dataset.data[:samples])
        .permute(0, 3, 1, 2)
        .to(torch.float32, memory_format=torch.contiguous_format)
    )
    y = torch.tensor(dataset.targets[:samples])
    return Images(name, split, x.div_(255), y, torch.arange(len(y)), tuple(dataset.classes))


def _open(name: str, kind: type[CIFAR10], root: Path, train: bool) -> CIFAR10:
    # torchvision raises RuntimeError for both missing and damaged files.
    with contextlib.suppress(RuntimeError):
        return kind(str(root), train=train, download=False)
    created = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        # Some torchvision releases print to stdout, which is reserved for `--json`.
        with contextlib.redirect_stdout(sys.stderr):
            return kind(str(root), train=train, download=True)
    except (RuntimeError, OSError) as error:
        for folder in created:
            with contextlib.suppress(OSError):
                folder.rmdir()
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResourceError(
            f"{name} is incomplete under {root} and cannot be downloaded ({reason}): put the folder "
            f"{kind.base_folder} of {kind.url} there, or pass the folder that contains it with --data-dir"
        ) from error

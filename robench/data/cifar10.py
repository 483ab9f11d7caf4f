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
@described(Facts(f"{FOLDER}/<batches>, downloaded where it is missing", CIFAR10.url))
def load(split: str = "test", data_dir: str | None = None, samples: int | None = None) -> Images:
    """32x32 images of ten kinds of things; 50,000 for training and 10,000 for testing.

    Args:
        split: "train" or "test".
        data_dir: the folder that holds `cifar-10-batches-py`; None for `default_root()`. When the files are
            not there they are downloaded into it.
        samples: the first so many; None for all.

    Raises:
        UsageError: for another split.
        ResourceError: when the files are missing or damaged and cannot be downloaded.
    """
    return load_whole("cifar10", CIFAR10, split, data_dir, samples)


def load_whole(
    name: str, kind: type[CIFAR10], split: str, data_dir: str | None, samples: int | None
) -> Images:
    """One of the two data sets that torchvision reads, `kind`, under the name `name`; else as `load`."""
    check_split(name, split)
    found = _open(name, kind, data_root(data_dir), split == "train")
    x = (
        torch.from_numpy(found.data[:samples])
        .permute(0, 3, 1, 2)
        .to(torch.float32, memory_format=torch.contiguous_format)
    )
    y = torch.tensor(found.targets[:samples])
    return Images(name, split, x.div_(255), y, torch.arange(len(y)), tuple(found.classes))


def _open(name: str, kind: type[CIFAR10], root: Path, train: bool) -> CIFAR10:
    # torchvision answers missing and damaged files alike, by RuntimeError.
    with contextlib.suppress(RuntimeError):
        return kind(str(root), train=train, download=False)
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        # Some torchvision releases print to stdout, which `--json` keeps for itself.
        with contextlib.redirect_stdout(sys.stderr):
            return kind(str(root), train=train, download=True)
    except (RuntimeError, OSError) as error:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResourceError(
            f"{name} is not whole under {root} and cannot be downloaded ({reason}): put the folder "
            f"{kind.base_folder} of {kind.url} there, or give the folder that holds it with --data-dir"
        ) from error

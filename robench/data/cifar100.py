"""`cifar100`: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"."""

from torchvision.datasets import CIFAR100

from robench.core import registry
from robench.data._base import Facts, Images, described
from robench.data.cifar10 import load_whole


@registry.datasets.register("cifar100")
@described(Facts(f"{CIFAR100.base_folder}/<files>, downloaded if missing", CIFAR100.url))
def load(split: str = "test", data_dir: str | None = None, samples: int | None = None) -> Images:
    """CIFAR-100: 32x32 images of 100 classes (fine labels), 50,000 for training and 10,000 for testing.

    Args:
        split: "train" or "test".
        data_dir: folder that contains `cifar-100-python`; None for `default_root()`. Missing files are downloaded into
            it.
        samples: number of images to load, from the start; None for all.

    Raises:
        UsageError: for another split.
        ResourceError: if the files are missing or damaged and cannot be downloaded.
    """
    return load_whole("cifar100", CIFAR100, split, data_dir, samples)

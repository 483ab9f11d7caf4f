"""`folder:DIR`: image files, with one folder for each class."""

from pathlib import Path

import torch

from robench.core import registry
from robench.core.errors import ResourceError, UsageError
from robench.core.specs import Spec, without
from robench.data import _image_files
from robench.data import preprocessing as preprocessings
from robench.data._base import Facts, Images, check_channels, check_split, described
from robench.data._names import imagenet_classes, synsets

CLASSES = ("folders", "imagenet")


@registry.datasets.register("folder")
@described(Facts("<class>/<picture> in the given folder"))
def load(
    path: str,
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    preprocessing: str = "none",
    classes: str = "folders",
    channels: int = 3,
) -> Images:
    """folder:DIR: images with one folder for each class, the layout of torchvision's ImageFolder.

    The canonical order alternates between classes: the first image of every class, then the second of every class, and
    so on. An id is the position in this order. The folder is always the split "test".

    Args:
        path: path of the folder, relative to `data_dir` if that is given.
        samples: number of images to load, from the start; None for all.
        preprocessing: "none" for images of equal size; else see `robench.data.preprocessing`.
        classes: "folders" for one class for each folder, sorted by name; "imagenet" for folders named by ImageNet
            synsets (ImageNet-A, -R, -Sketch), with their labels among the 1,000 classes.
        channels: 3, or 1 for the luminance, for defenses that expect gray images.

    Raises:
        UsageError: for another split, preprocessing, kind of classes or number of channels, or images of different
            sizes.
        ResourceError: if images are missing or damaged, with their number, or folders are not synsets.
    """
    if classes not in CLASSES:
        raise UsageError(f'classes="{classes}": expected {" or ".join(CLASSES)}')
    preprocessings.parse(preprocessing)
    check_channels(channels)
    spec = Spec(f"folder:{path}", {"preprocessing": preprocessing, "classes": classes, "channels": channels})
    name = str(without(spec, preprocessing="none", classes="folders", channels=3))
    check_split(name, split, ("test",))
    folder = Path(data_dir or "").expanduser() / Path(path).expanduser()
    if not folder.is_dir():
        raise ResourceError(
            f"{folder} is not a folder: {name} needs one with a folder of images for each class"
        )
    files = _image_files.list_classes(folder, name)
    known = synsets() if classes == "imagenet" else tuple(files)
    _image_files.check_known(files, known, folder, name, "ImageNet's 1,000 synsets")
    x, y = _image_files.read_classes(files, known, samples, preprocessing, name, channels)
    names = imagenet_classes() if classes == "imagenet" else known
    return Images(name, split, x, y, torch.arange(len(x)), names)

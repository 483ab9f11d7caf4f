"""`folder:DIR`: anybody's pictures, one folder a class."""

from pathlib import Path

import torch

from robench.core import registry
from robench.core.errors import ResourceError, UsageError
from robench.core.specs import Spec
from robench.data import _image_files
from robench.data import preprocessing as preprocessings
from robench.data._base import Facts, Images, check_channels, check_split, described
from robench.data._names import imagenet_classes, synsets

CLASSES = ("folders", "imagenet")


@registry.datasets.register("folder")
@described(Facts("<class>/<picture> in the folder that the name says"))
def load(
    path: str,
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    preprocessing: str = "none",
    classes: str = "folders",
    channels: int = 3,
) -> Images:
    """folder:DIR: a folder of pictures with a folder a class, as torchvision's ImageFolder reads.

    The canonical order takes the first picture of every class, then every second one, and so on, so that the
    first images are of all classes; an id is the position in it. The folder is the split "test", whatever it
    is of.

    Args:
        path: of the folder; a relative one is looked for in `data_dir` where that is given.
        samples: the first so many; None for all.
        preprocessing: "none" for pictures of one size; else see `robench.data.preprocessing`.
        classes: "folders" for a class a folder, in the order of their names; "imagenet" where the folders are
            named by some of ImageNet's synsets (ImageNet-A, -R, -Sketch), with the labels that these have among
            the thousand.
        channels: 3, or 1 for the luminance alone. A defense of grey images gets 1.

    Raises:
        UsageError: for another split, preprocessing, kind of classes or number of channels, or pictures of several
            sizes.
        ResourceError: when pictures are missing or damaged, with their number, or folders are no synsets.
    """
    if classes not in CLASSES:
        raise UsageError(f'classes="{classes}": expected {" or ".join(CLASSES)}')
    preprocessings.parse(preprocessing)
    check_channels(channels)
    told = {} if preprocessing == "none" else {"preprocessing": preprocessing}
    told |= ({} if classes == "folders" else {"classes": classes}) | (
        {} if channels == 3 else {"channels": channels}
    )
    name = str(Spec(f"folder:{path}", told))
    check_split(name, split, ("test",))
    folder = Path(data_dir or "").expanduser() / Path(path).expanduser()
    if not folder.is_dir():
        raise ResourceError(f"{folder} is no folder: {name} needs one with a folder of pictures a class")
    found = _image_files.list_classes(folder, name)
    known = synsets() if classes == "imagenet" else tuple(found)
    if strangers := [folder / each for each in found if each not in known]:
        raise ResourceError(
            f"{len(strangers)} of {len(found)} folders of {name} are no synset of ImageNet's thousand: "
            + _image_files.named(strangers)
        )
    rows = _image_files.labelled(found, known)[:samples]
    x = _image_files.decode(enumerate(file for _, file in rows), len(rows), preprocessing, name, channels)
    y = torch.tensor([label for label, _ in rows], dtype=torch.int64)
    names = imagenet_classes() if classes == "imagenet" else known
    return Images(name, split, x, y, torch.arange(len(x)), names)

"""`npz:FILE`: images in a NumPy archive."""

from pathlib import Path

import torch

from robench.core import registry
from robench.core.errors import ResourceError
from robench.core.specs import Spec, without
from robench.data import _numpy_files
from robench.data._base import Facts, Images, check_channels, check_split, described

# The most classes of a file without names of classes, each of which is given one.
_MOST = 100_000


@registry.datasets.register("npz")
@described(Facts("arrays x, y and optionally classes in the given archive"))
def load(
    path: str,
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    classes: int = 0,
    channels: int = 3,
) -> Images:
    """npz:FILE: an archive with images `x`, labels `y` and optional names of classes `classes`.

    `x` is (N, H, W, 3), (N, 3, H, W), or (N, H, W) for gray images, as uint8 or floats in [0, 1]; `y` is (N,) whole
    numbers. An id is the position in the file. The archive is always the split "test".

    Args:
        path: path of the file, relative to `data_dir` if that is given.
        samples: number of images to load, from the start; None for all.
        classes: number of classes; 0 for the number of names in the file or, without names, the largest label plus one.
        channels: 3, which repeats the channel of gray images, or 1, for gray images only and defenses that expect them.

    Raises:
        UsageError: for another split or number of channels.
        ResourceError: if the file is missing, damaged, or has other content.
    """
    check_channels(channels)
    name = str(
        without(Spec(f"npz:{path}", {"classes": classes, "channels": channels}), classes=0, channels=3)
    )
    check_split(name, split, ("test",))
    file = Path(data_dir or "").expanduser() / Path(path).expanduser()
    arrays = _numpy_files.read_archive(file, ("y",), ("classes",), present=("x",))
    class_names = tuple(str(name) for name in arrays["classes"].ravel()) if "classes" in arrays else ()
    if class_names and classes and classes != len(class_names):
        raise ResourceError(f"{file} names {len(class_names)} classes: omit classes={classes}")
    y = _numpy_files.labels(arrays["y"], file, len(class_names) or classes or None)
    count = _numpy_files.rows(file, "x")
    if len(y) != count:
        raise ResourceError(f"{file}: {count} images and {len(y)} labels: expected equal numbers")
    if not len(y):
        raise ResourceError(f"{file} contains no images")
    x = _numpy_files.member_pixels(file, "x", samples, channels)
    count = classes or int(y.max()) + 1
    if not class_names and count > _MOST:
        raise ResourceError(
            f"{file}: {count:,} classes, from labels up to {int(y.max())}: expected at most {_MOST:,}"
        )
    class_names = class_names or tuple(map(str, range(count)))
    return Images(name, split, x, y[:samples], torch.arange(len(x)), class_names)

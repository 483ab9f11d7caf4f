"""`npz:FILE`: anybody's images in a NumPy archive."""

from pathlib import Path

import torch

from robench.core import registry
from robench.core.errors import ResourceError
from robench.core.specs import Spec
from robench.data import _numpy_files
from robench.data._base import Facts, Images, check_channels, check_split, described


@registry.datasets.register("npz")
@described(Facts("arrays x, y and perhaps classes in the archive that the name says"))
def load(
    path: str,
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    classes: int = 0,
    channels: int = 3,
) -> Images:
    """npz:FILE: an archive with images `x`, labels `y` and perhaps the classes' names `classes`.

    An id is the position in the file. The archive is the split "test", whatever it is of.

    Args:
        path: of the file; a relative one is looked for in `data_dir` where that is given.
        samples: the first so many; None for all.
        classes: how many; 0 for the number of names in the file or, without names, the largest label plus one.
        channels: 3, which repeats grey images, or 1, for grey images alone. A defense of grey images gets 1.

    Raises:
        UsageError: for another split or number of channels.
        ResourceError: when the file is missing, damaged, or holds something else: `x` as (N, H, W, 3),
            (N, 3, H, W), or grey as (N, H, W), uint8 or floats in [0, 1], `y` as (N,) whole numbers.
    """
    check_channels(channels)
    told = ({"classes": classes} if classes else {}) | ({"channels": channels} if channels != 3 else {})
    name = str(Spec(f"npz:{path}", told))
    check_split(name, split, ("test",))
    file = Path(data_dir or "").expanduser() / Path(path).expanduser()
    found = _numpy_files.read_archive(file, ("y",), ("classes",), also=("x",))
    named = tuple(str(each) for each in found["classes"].ravel()) if "classes" in found else ()
    if named and classes and classes != len(named):
        raise ResourceError(f"{file} names {len(named)} classes: leave classes={classes} out")
    y = _numpy_files.labels(found["y"], file, len(named) or classes or None)
    count = _numpy_files.rows(file, "x")
    if len(y) != count:
        raise ResourceError(f"{file}: {count} images and {len(y)} labels: expected as many")
    if not len(y):
        raise ResourceError(f"{file} holds no images")
    x = _numpy_files.member_pixels(file, "x", samples, channels)
    count = classes or int(y.max()) + 1
    return Images(
        name,
        split,
        x,
        y[:samples],
        torch.arange(len(x)),
        named or tuple(str(k) for k in range(count)),
    )

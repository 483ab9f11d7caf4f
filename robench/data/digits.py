"""`digits`: the 1,797 handwritten digits that come with scikit-learn and need no download.

Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository; scikit-learn
contains the test part of that dataset: digits of 43 writers, reduced to 8x8 counts in 0 .. 16.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from robench.core import registry
from robench.core.errors import ResourceError, UsageError
from robench.data._base import Facts, Images, check_split, described

SIZE = 16
# Powers of two, for which bilinear weights are exact.
SIZES = (8, 16, 32, 64, 128, 256)
# Three residues of ten, spread out because neighboring images come from the same writer.
TEST_RESIDUES = (2, 5, 8)
# Within scikit-learn. Its `load_digits` gives the same numbers, after an import that takes longer than torch's.
FILE = Path("datasets", "data", "digits.csv.gz")


@registry.datasets.register("digits")
@described(Facts("none: included in scikit-learn", needs_files=False))
def load(split: str = "test", data_dir: str | None = None, size: int = SIZE) -> Images:
    """Handwritten digits, 16x16 with three equal channels, 1,258 for training and 539 for testing: `digits(size=32)`.

    Counts are divided by 16 and enlarged bilinearly. Both steps are exact in float32, so pixels are identical on every
    machine. An id is the index in scikit-learn; images with id % 10 in (2, 5, 8) form the test split.

    Args:
        split: "train" or "test".
        data_dir: not used.
        size: side length in pixels, a power of two of at least 8.

    Raises:
        UsageError: for another split or size.
        ResourceError: when scikit-learn is not installed, or its file cannot be read.
    """
    if size not in SIZES:
        raise UsageError(f"digits(size={size!r}): expected one of {', '.join(map(str, SIZES))}")
    check_split("digits", split)
    table = _table()
    ids = torch.arange(len(table))
    held_out = torch.isin(ids % 10, torch.tensor(TEST_RESIDUES))
    ids = ids[held_out == (split == "test")]
    x = table[ids, :-1].view(-1, 1, 8, 8).float() / 16
    x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    y = table[ids, -1].long()
    name = "digits" if size == SIZE else f"digits({size=})"
    return Images(name, split, x.repeat(1, 3, 1, 1), y, ids, tuple(map(str, range(10))))


def _table() -> torch.Tensor:
    """scikit-learn's file: 64 counts and the label of each image, int64."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ResourceError("digits come with scikit-learn, which is not installed: pip install scikit-learn")
    path = Path(package.origin).parent / FILE
    try:
        return torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.int64))
    except (OSError, ValueError) as error:
        raise ResourceError(f"{path}: {error}: pip install --force-reinstall scikit-learn") from error

"""`parquet:FOLDER`: any image data set of Hugging Face's, as it is downloaded."""

import re
from pathlib import Path

import numpy as np
import torch

from robench.core import registry
from robench.core.errors import ResourceError, UsageError
from robench.core.specs import Spec
from robench.data import _image_files, _parquet
from robench.data import preprocessing as preprocessings
from robench.data._base import Facts, Images, check_split, described

# What the parts are called that each split may be, the best first.
_PARTS = {"train": ("train", "training"), "test": ("test", "validation", "valid", "val", "dev")}
_FILE = re.compile(r"(?P<part>[A-Za-z_]+)-\d+(-of-\d+.*)?")


@registry.datasets.register("parquet")
@described(
    Facts("<part>-00000-of-00001.parquet, <part>/0000.parquet or the like in the folder that the name says")
)
def load(
    path: str,
    split: str = "test",
    data_dir: str | None = None,
    samples: int | None = None,
    preprocessing: str = "none",
    part: str = "",
    image: str = "",
    label: str = "",
) -> Images:
    """parquet:FOLDER: pictures and labels in parquet files, as Hugging Face keeps image data sets.

    The first row of every class comes first, then every second one, and so on, so that the first images are of all
    classes; an id is the number of the row, over all files in the order of their names.

    Args:
        path: of the folder, or of one file; a relative one is looked for in `data_dir` where that is given.
        split: "train" or "test"; the latter is the part test, else validation, else all files where none says what
            part it is.
        samples: the first so many; None for all.
        preprocessing: "none" for pictures of one size; else see `robench.data.preprocessing`.
        part: another part, by its name, for the split "test".
        image, label: columns; empty for those that the files say are of images and class labels.

    Raises:
        UsageError: for another split or preprocessing, an unknown part or column, or pictures of several sizes.
        ResourceError: when files or pictures are missing or damaged, with their number, or rows have no label.
    """
    preprocessings.parse(preprocessing)
    told = {"preprocessing": preprocessing if preprocessing != "none" else "", "part": part}
    told |= {"image": image, "label": label}
    name = str(Spec(f"parquet:{path}", {key: value for key, value in told.items() if value}))
    check_split(name, split)
    place = Path(data_dir or "").expanduser() / Path(path).expanduser()
    table = _parquet.open_table(_choose(place, name, split, part), name, image, label)
    by_class = (np.flatnonzero(table.labels == k).tolist() for k in range(len(table.classes)))
    rows = _image_files.round_robin(by_class)[:samples]
    x = _image_files.decode(table.pictures(rows), len(rows), preprocessing, name)
    return Images(name, split, x, torch.from_numpy(table.labels[rows]), torch.tensor(rows), table.classes)


def _choose(place: Path, name: str, split: str, part: str) -> list[Path]:
    """The files of a split."""
    if place.is_file():
        return [place]
    parts = files_by_part(place)
    if not parts:
        lack = "holds no parquet files" if place.is_dir() else "is no folder"
        raise ResourceError(
            f"{place} {lack}: {name} needs such as test-00000-of-00001.parquet there or below"
        )
    known = sorted(parts)
    if part and part not in parts:
        raise UsageError(
            f'{name} has no part "{part}": it has {", ".join(filter(None, known)) or "no named parts"}'
        )
    whole = [""] if split == "test" else []
    fitting = [each for each in ([part] if part else [*_PARTS[split], *whole]) if each in parts]
    if not fitting:
        raise UsageError(
            f'{name} has no part for the split {split}: it has {", ".join(filter(None, known))}; name one by part="..."'
        )
    files = parts[fitting[0]]
    if len(folders := sorted({file.parent for file in files})) > 1:
        raise UsageError(
            f"{name} has parquet files in several folders, {_image_files.named(folders)}: name one of them"
        )
    return files


def files_by_part(folder: Path) -> dict[str, list[Path]]:
    """The parquet files below a folder, by the part of a data set that they are of; "" where nothing says it."""
    known = {each for parts in _PARTS.values() for each in parts}
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        match = _FILE.fullmatch(file.stem)
        names = [match["part"] if match else file.stem, file.parent.name]
        part = next((each for each in names if each in known), names[0] if match else "")
        found.setdefault(part, []).append(file)
    return found

"""`parquet:FOLDER`: image datasets downloaded from Hugging Face."""

import re
from pathlib import Path

import numpy as np
import torch

from robench.core import registry
from robench.core.errors import ResourceError, UsageError
from robench.core.specs import Spec, without
from robench.data import _image_files, _parquet
from robench.data import preprocessing as preprocessings
from robench.data._base import Facts, Images, check_split, described

# Names of the parts that each split may refer to, in order of preference.
_PARTS = {"train": ("train", "training"), "test": ("test", "validation", "valid", "val", "dev")}
_FILE = re.compile(r"(?P<part>[A-Za-z_]+)-\d+(-of-\d+.*)?")


@registry.datasets.register("parquet")
@described(Facts("<part>-00000-of-00001.parquet, <part>/0000.parquet or similar in the given folder"))
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
    """parquet:FOLDER: images and labels in parquet files, the format of Hugging Face.

    The order alternates between classes: the first row of every class, then the second of every class, and so on. An id
    is the number of the row over all files, sorted by name.

    Args:
        path: path of the folder or of one file, relative to `data_dir` if that is given.
        split: "train" or "test"; "test" refers to the part test, else validation, else all files if they name no part.
        samples: number of images to load, from the start; None for all.
        preprocessing: "none" for images of equal size; else see `robench.data.preprocessing`.
        part: name of another part to use for the split "test".
        image, label: names of the columns; empty for those that the files declare.

    Raises:
        UsageError: for another split or preprocessing, an unknown part or column, or images of different sizes.
        ResourceError: if files or images are missing or damaged, with their number, or rows have no label.
    """
    preprocessings.parse(preprocessing)
    arguments = {"preprocessing": preprocessing, "part": part, "image": image, "label": label}
    name = str(without(Spec(f"parquet:{path}", arguments), preprocessing="none", part="", image="", label=""))
    check_split(name, split)
    place = Path(data_dir or "").expanduser() / Path(path).expanduser()
    files = _choose(place, name, split, part)
    others = (
        [] if place.is_file() else [other for other in sorted(place.rglob("*.parquet")) if other not in files]
    )
    table = _parquet.open_table(files, name, image, label, others)
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
        problem = "contains no parquet files" if place.is_dir() else "is not a folder"
        raise ResourceError(
            f"{place} {problem}: {name} needs files such as test-00000-of-00001.parquet in it or below"
        )
    known = sorted(parts)
    if part and part not in parts:
        raise UsageError(
            f'{name} has no part "{part}": it has {", ".join(filter(None, known)) or "no named parts"}'
        )
    unnamed = [""] if split == "test" else []
    fitting = [key for key in ([part] if part else [*_PARTS[split], *unnamed]) if key in parts]
    if not fitting:
        raise UsageError(
            f'{name} has no part for the split {split}: it has {", ".join(filter(None, known))}; set part="..."'
        )
    files = parts[fitting[0]]
    if len(folders := sorted({file.parent for file in files})) > 1:
        raise UsageError(
            f"{name} has parquet files in several folders, {_image_files.named(folders)}: give one of them"
        )
    return files


def files_by_part(folder: Path) -> dict[str, list[Path]]:
    """The parquet files below a folder, by part of the dataset; "" if they name none."""
    known = {part for parts in _PARTS.values() for part in parts}
    by_part: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        match = _FILE.fullmatch(file.stem)
        names = [match["part"] if match else file.stem, file.parent.name]
        part = next((name for name in names if name in known), names[0] if match else "")
        by_part.setdefault(part, []).append(file)
    return by_part

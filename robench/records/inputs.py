"""The inputs for checking a record: its images, and the name of its defense."""

from pathlib import Path
from typing import TYPE_CHECKING

from robench.core import specs
from robench.core.errors import ResourceError, UsageError
from robench.core.io import read_ordinary
from robench.data import load_dataset
from robench.records.record import Record

# Boards read records without torch.
if TYPE_CHECKING:
    from robench.data._base import Images

# File of a record's own images if they are from no dataset, and the dataset name for these.
FILE = "images.npz"
BESIDE = f"npz:{FILE}"
# Prefix of the class name of a model that had no name when it was attacked.
MODEL = "model:"


def images_of(record: Record, data_dir: str | None = None) -> "Images":
    """The images of a record: its own file if it has one, otherwise those of its dataset.

    Raises:
        UsageError, ResourceError: as `robench.data.load_dataset`.
    """
    dataset = record.job.dataset
    if record.folder is None or not has_own_images(record):
        return load_dataset(dataset.name, dataset.split, record.job.n, data_dir)
    if (record.folder / FILE).is_symlink():
        raise ResourceError(f"{record.folder / FILE} is a link: expected the images themselves")
    # The file is part of the record, so reading it needs no trust.
    return load_dataset(str(dataset.name), dataset.split, record.job.n, str(record.folder))


def own_images(record: Record) -> bytes | None:
    """The file of a record's own images; None if they are those of a dataset.

    Raises:
        ResourceError: when the file is missing or a link.
    """
    if record.folder is None or not has_own_images(record):
        return None
    try:
        return read_ordinary(record.folder / FILE)
    except OSError as error:
        raise ResourceError(f"{record.folder / FILE}: {error.strerror or error}") from error


def has_own_images(record: Record) -> bool:
    """Whether a record brings the images that it attacked."""
    return specs.parse(record.job.dataset.name).name == BESIDE


def nameless(record: Record) -> bool:
    """Whether a record's model had no name when it was attacked. Its weights identify it."""
    return record.job.defense.name.startswith(MODEL)


def defense_of(record: Record, typed: str | None = None) -> str:
    """The name of the defense to check a record with: the user's choice, or the one in the record.

    Raises:
        UsageError: when neither names one.
    """
    if not typed and nameless(record):
        raise UsageError(
            f"{record.folder or Path()} is of a {record.job.defense.name.removeprefix(MODEL)} without a name: specify "
            "how to load it, such as --defense python:MODULE.FUNCTION"
        )
    return typed or record.job.defense.name

"""Data sets: images in canonical order, float32 in [0, 1]."""

from robench import registry
from robench.data import cifar10, digits  # noqa: F401 - they register themselves
from robench.data._base import Images
from robench.errors import UsageError

__all__ = ["Images", "load_dataset"]


def load_dataset(
    name: str, split: str = "test", samples: int | None = None, data_dir: str | None = None
) -> Images:
    """The first `samples` images of a data set's split, in canonical order; all of them for None.

    Args:
        name: a registered data set; `robench list datasets` shows them.
        split: "train" or "test".
        data_dir: where the files lie, for a data set that has files.

    Raises:
        UsageError: for an unknown name or split, or more images than there are.
        ResourceError: when the files are missing, damaged or unreadable.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"{samples} images of {name} were asked for: expected at least 1")
    images: Images = registry.datasets.get(name)(split=split, data_dir=data_dir)
    if samples is None:
        return images
    if samples > len(images):
        raise UsageError(
            f"{samples} images of {name} were asked for: its {split} split has {len(images)}, ask for fewer"
        )
    return images.first(samples)

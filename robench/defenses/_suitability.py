"""Whether a classifier or a purifier suits the images of a dataset."""

from robench.core.errors import UsageError
from robench.data import Images
from robench.defenses._base import Defense, Purifier

REMEDY = "choose a defense of that dataset (robench list defenses)"


def check_network(name: str, defense: Defense, images: Images, remedy: str = REMEDY) -> None:
    """Check a classifier against the size, channels and classes of images.

    Args:
        remedy: what to do about images of another size.

    Raises:
        UsageError: naming the defense and the first difference.
    """
    side = images.x.shape[-1]
    if defense.image_size != side:
        raise UsageError(
            f"{name} takes images of {defense.image_size} px, but dataset {images.name} has {side} px: {remedy}"
        )
    if defense.channels != images.x.shape[1]:
        raise UsageError(
            f"{name} takes images with {defense.channels} channels, but dataset {images.name} has "
            f"{images.x.shape[1]} (3 for RGB, 1 for gray)"
        )
    if defense.num_classes != len(images.classes):
        raise UsageError(
            f"{name} has {defense.num_classes} classes, but dataset {images.name} has {len(images.classes)}"
        )


def check_purifier(name: str, purifier: Purifier, images: Images) -> None:
    """Check a purifier against the size of its training images.

    Raises:
        UsageError: naming the card.
    """
    try:
        purifier.check(images.image_size)
    except ValueError as error:
        raise UsageError(f"{name} cannot be trained on {images.name}: {error}") from error

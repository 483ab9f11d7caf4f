"""Checks that a network suits the training images, before a training."""

from robench.core.errors import UsageError
from robench.data import Images
from robench.defenses import Defense, Purifier


def check_network(name: str, defense: Defense, images: Images) -> None:
    """Check a classifier against the size, channels and classes of its training images.

    Raises:
        UsageError: naming the card and the first difference.
    """
    _, channels, _, side = images.x.shape
    for what, own, given in (
        ("image_size", defense.image_size, side),
        ("channels", defense.channels, channels),
        ("num_classes", defense.num_classes, len(images.classes)),
    ):
        if own != given:
            raise UsageError(f"{name}: its network has {what}={own}, but data set {images.name} has {given}")


def check_purifier(name: str, purifier: Purifier, images: Images) -> None:
    """Check a purifier against the size of its training images.

    Raises:
        UsageError: naming the card.
    """
    try:
        purifier.check(images.image_size)
    except ValueError as error:
        raise UsageError(f"{name} cannot be trained on {images.name}: {error}") from error

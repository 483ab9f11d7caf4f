"""A subset of the classes of a network."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Subset:
    """The classes of a dataset among those of a network with more classes; its other classes are ignored.

    Attributes:
        indices: index of the logit of each class, in the order of the dataset's classes.
        of: number of classes of such a network.
    """

    indices: tuple[int, ...]
    of: int

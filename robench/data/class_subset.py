"""Some of the classes that a network tells apart."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Subset:
    """The classes of a data set, as a network that knows more has them: none of its others count.

    Attributes:
        indices: of the network's logits, in the order of the data set's classes.
        of: how many classes such a network has.
    """

    indices: tuple[int, ...]
    of: int

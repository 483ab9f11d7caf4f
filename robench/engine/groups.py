"""Which images of a run an attack that couples rows plays together."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Some samples of a run, by their place in it.

    Attributes:
        members: in the order of their lanes.
        own: how many of them, the first, belong here; the others fill up and count elsewhere.
    """

    members: tuple[int, ...]
    own: int


def fixed_groups(ids: Tensor, size: int) -> list[Group]:
    """The run's samples by rising id, `size` together; the last group is filled up with the first samples.

    Args:
        ids: (N,) int64, of every sample of the run, fooled or not, so that a group never changes.
        size: at most N.
    """
    order = ids.argsort(stable=True).tolist()
    n = len(order)
    return [
        Group(tuple(order[(start + i) % n] for i in range(size)), min(size, n - start))
        for start in range(0, n, size)
    ]

"""Shares of a run's samples, which processes and machines play independently of each other."""

from collections.abc import Callable, Sequence
from math import lcm

import torch
from torch import Tensor

from robench.attacks._base import Attack
from robench.engine.checkpoint import Saved, Store


def split(ids: Tensor, attacks: Sequence[Attack], count: int) -> list[Tensor]:
    """The samples of each of at most `count` shares, bool (n,) each. Samples of one group are in one share."""
    n = len(ids)
    group = lcm(*(min(attack.group, n) for attack in attacks))
    place = torch.empty(n, dtype=torch.int64)
    place[ids.argsort(stable=True)] = torch.arange(n)
    # In turns, because images of one class often follow each other.
    turn = place // group % count
    return [turn == i for i in range(min(count, -(-n // group)))]


def shares_begun(store: Store, usable: Callable[[Saved], bool]) -> int:
    """Number of shares of the run that a store can resume; 0 if there is none.

    Args:
        usable: whether a saved state can be continued here; what cannot is dropped.
    """
    begun = store.shares()
    if not begun:
        return 0
    kept = 0
    for part in [store.share(i, begun) for i in range(begun)] if begun > 1 else [store]:
        saved = part.load()
        if saved and usable(saved):
            kept += 1
        elif saved:
            part.forget("the defense gives other logits here than when the run was interrupted")
    return begun if kept else 0

"""Shares of a run's samples, which run independently in several processes or on several machines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor

from robench.attacks._base import Attack
from robench.engine.checkpoint import Saved, Store

# Minimum number of images per share.
SMALLEST = 64


@dataclass(frozen=True)
class Deal:
    """A split of the samples that was chosen for a run.

    Attributes:
        share: the share of each sample, from 0.
        first: number of shares to run; None for all.
    """

    share: tuple[int, ...]
    first: int | None = None

    def masks(self) -> list[Tensor]:
        """The samples of each share, bool (n,) each."""
        share = torch.tensor(self.share)
        return [share == i for i in range(int(share.max()) + 1)]


def share_count(samples: int, batch_size: int) -> int:
    """Number of shares for workers that take one after another; it does not depend on their number.

    A share has two batches: in smaller ones the last attacks, which attack few images, leave most of each batch unused
    (perf/simulate_cluster.py).
    """
    return -(-samples // max(SMALLEST, 2 * batch_size))


def split(ids: Tensor, attacks: Sequence[Attack], count: int) -> list[Tensor]:
    """The samples of each of at most `count` shares, bool (n,) each. Samples of one group are in one share."""
    n, group = len(ids), _group(ids, attacks)
    position = torch.empty(n, dtype=torch.int64)
    position[ids.argsort(stable=True)] = torch.arange(n)
    # Groups are dealt out in turn, because consecutive images are often of the same class.
    share = position // group % count
    return [share == i for i in range(min(count, most_shares(ids, attacks)))]


def most_shares(ids: Tensor, attacks: Sequence[Attack]) -> int:
    """The number of groups of samples, of which a share has at least one."""
    return -(-len(ids) // _group(ids, attacks))


def _group(ids: Tensor, attacks: Sequence[Attack]) -> int:
    """Number of consecutive samples that stay together."""
    return lcm(*(min(attack.group, len(ids)) for attack in attacks))


def saved_shares(store: Store, is_usable: Callable[[Saved], bool]) -> int:
    """Number of shares of the run that a store can resume; 0 if there is none.

    Args:
        is_usable: whether a saved state can be resumed here; other states are deleted.
    """
    count = store.shares()
    if not count:
        return 0
    usable = 0
    for share in [store.share(i, count) for i in range(count)] if count > 1 else [store]:
        saved = share.load()
        if saved and is_usable(saved):
            usable += 1
        elif saved:
            share.forget("the logits of the defense differ from those before the interruption")
    return count if usable else 0

"""Shares of a run's samples, which run independently in several processes or on several machines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Self

import torch
from torch import Tensor

from robench.attacks._base import Attack
from robench.engine.checkpoint import Saved, Store

# Minimum number of images per share.
SMALLEST = 64
# Number of last bits of an expected cost (float32) that do not count, which leaves eight levels for each power of two.
_IGNORED_BITS = 20


@dataclass(frozen=True)
class Deal:
    """A split of the samples.

    Attributes:
        share: the share of each sample, from 0.
        first: number of shares to run; None for all.
    """

    share: tuple[int, ...]
    first: int | None = None

    @classmethod
    def of(cls, ids: Tensor, attacks: Sequence[Attack], count: int, cost: Tensor) -> Self:
        """The split into at most `count` shares of about the same cost. Samples of one group are in one share.

        Args:
            cost: for each sample a number of at least 0 that is large if it is likely to cost much, (n,).
        """
        n, group, groups = len(ids), _group(ids, attacks), most_shares(ids, attacks)
        count = min(count, groups)
        position = torch.empty(n, dtype=torch.int64)
        position[ids.argsort(stable=True)] = torch.arange(n)
        costs = torch.zeros(groups).index_add(0, position // group, cost.float().nan_to_num(0.0))
        # Another processor may round the last bits differently. Positive floats are in the order of their bits.
        levels = costs.view(torch.int32) >> _IGNORED_BITS
        rank = torch.empty(groups, dtype=torch.int64)
        rank[levels.argsort(descending=True, stable=True)] = torch.arange(groups)
        # To and fro: 0, 1, 2, 2, 1, 0, 0, 1, ..., because the first of each round costs most.
        turn, place = rank // count, rank % count
        share = torch.where(turn % 2 == 0, place, count - 1 - place)
        return cls(tuple(share[position // group].tolist()))

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


def most_shares(ids: Tensor, attacks: Sequence[Attack]) -> int:
    """The number of groups of samples, of which a share has at least one."""
    return -(-len(ids) // _group(ids, attacks))


def _group(ids: Tensor, attacks: Sequence[Attack]) -> int:
    """Number of consecutive samples that stay together."""
    return lcm(*(min(attack.group, len(ids)) for attack in attacks))


def saved_shares(store: Store, is_usable: Callable[[Saved], bool], check: Callable[[Saved], object]) -> int:
    """Number of shares of the run that a store can resume; 0 if there is none.

    Args:
        is_usable: whether a saved state can be resumed here; other states are deleted.
        check: raises an error for a state that is malformed.
    """
    count = store.shares()
    if not count:
        return 0
    usable = 0
    for share in [store.share(i, count) for i in range(count)] if count > 1 else [store]:
        saved = share.load(check)
        if saved and is_usable(saved):
            usable += 1
        elif saved:
            share.forget("the logits of the defense differ from those before the interruption")
    return count if usable else 0

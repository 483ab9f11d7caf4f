"""Lanes, which run rows of an attack side by side, and the queue of groups that fills them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from robench.attacks._base import tensors

# Rows are initialised in groups of this size, so that results do not depend on how many start together.
START = 8


@dataclass(frozen=True)
class Group:
    """Some samples of a run, by their place in it.

    Attributes:
        members: in the order of their lanes.
        size: number of members, from the first, that belong to this group; the others are padding.
    """

    members: tuple[int, ...]
    size: int


def fixed_groups(ids: Tensor, size: int) -> list[Group]:
    """The run's samples by rising id, `size` together; the last group is padded with the first samples.

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


class Queue:
    """The waiting groups, in the order of their rank.

    Args:
        ids: (N,) of every sample of the run.
        attacked: indices of the samples attacked.
        ranks: rows of an image; size: samples a group.

    Attributes:
        next: the place of the first group that waits.
    """

    def __init__(self, ids: Tensor, attacked: set[int], ranks: int, size: int):
        groups = [g for g in fixed_groups(ids, size) if not attacked.isdisjoint(g.members[: g.size])]
        self.groups = [(rank, group) for rank in range(ranks) for group in groups]
        self.next = 0
        # Rows before each group: the rows that wait are asked for ten times a second.
        self._before = [0, *accumulate(group.size for _, group in self.groups)]

    def __bool__(self) -> bool:
        return self.next < len(self.groups)

    def pop(self) -> tuple[int, Group]:
        self.next += 1
        return self.groups[self.next - 1]

    @property
    def first(self) -> tuple[int, Group]:
        return self.groups[self.next]

    @property
    def total(self) -> int:
        """Rows of all groups."""
        return self._before[-1]

    @property
    def waiting(self) -> int:
        """Rows of the groups that wait."""
        return self._before[-1] - self._before[self.next]


@dataclass
class Lanes:
    """The state of each lane, (S,) each, on the CPU.

    Attributes:
        sample: of the row that counts; -1 for an idle lane, whose row (of the sample `held`) is padding.
        held: the sample whose image is in the lane.
        rank: of the row.
        queries: (S, 2) forward and backward passes of the row.
        kept_draws: in how many draws the kept point fools the judge; kept_distance: how far it is from its image,
            where that matters.
    """

    sample: Tensor
    held: Tensor
    rank: Tensor
    queries: Tensor
    kept_draws: Tensor
    kept_distance: Tensor

    @classmethod
    def idle(cls, count: int) -> "Lanes":
        zeros = torch.zeros(count, dtype=torch.int64)
        return cls(
            sample=zeros - 1,
            held=zeros.clone(),
            rank=zeros.clone(),
            queries=torch.zeros((count, 2), dtype=torch.int64),
            kept_draws=zeros.clone(),
            kept_distance=torch.full((count,), torch.inf, dtype=torch.float64),
        )

    @property
    def active(self) -> Tensor:
        """Which lanes have a row that counts, bool (S,)."""
        return self.sample >= 0

    def idle_blocks(self, size: int) -> list[int]:
        """Blocks of `size` lanes without an active row."""
        return (self.sample.view(-1, size) < 0).all(1).nonzero()[:, 0].tolist()

    def start(self, lanes: Tensor) -> None:
        """Reset these lanes for new rows."""
        self.queries[lanes] = 0
        self.drop(lanes)

    def drop(self, lanes: Tensor | int) -> None:
        """Reset the kept points of these lanes."""
        self.kept_draws[lanes] = 0
        self.kept_distance[lanes] = torch.inf


def named(prefix: str, value: Any) -> dict[str, Tensor]:
    """The tensors of a dataclass under names with a prefix, for a checkpoint."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors(value).items()}


def restored(prefix: str, template: Any, saved: dict[str, Tensor], device: torch.device | None = None) -> Any:
    """`template` with the tensors that `named` gave."""
    return replace(
        template, **{name: saved[f"{prefix}.{name}"].to(device or "cpu") for name in tensors(template)}
    )


def put(value: Any, lanes: Tensor, new: Any, rows: Tensor, begun: Any = None) -> Any:
    """A state (or Rows) with the `rows` of `new` written into `lanes`; a field that is still that of `begun`, which
    was gathered from there, stays."""
    old = tensors(begun) if begun is not None else {}
    written = {
        name: getattr(value, name).index_copy(0, lanes, tensor.index_select(0, rows))
        for name, tensor in tensors(new).items()
        if tensor is not old.get(name)
    }
    return replace(value, **written)


def in_parts(lanes: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """Some lanes, `size` at a time, each part with the place of its first."""
    for start in range(0, len(lanes), size):
        yield start, lanes[start : start + size]

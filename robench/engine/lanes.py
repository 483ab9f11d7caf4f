"""Lanes, which run rows of an attack in parallel, and the queue of groups that fills them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robench.attacks._base import tensors, write

# Rows are initialized in groups of this size, so that results do not depend on how many start together.
START = 8
# A forward pass costs about a quarter of one with gradient: this fraction of lanes is worth a turn without gradient.
_WORTH_A_TURN = 1 / 4
# Turns that a lane waits for the other kind of query.
_PATIENCE = 3


@dataclass(frozen=True)
class Group:
    """A group of samples that run together.

    Attributes:
        members: indices of the samples in the run, in the order of their lanes.
        size: number of members that belong to the group; the following members are padding.
    """

    members: tuple[int, ...]
    size: int


def fixed_groups(ids: Tensor, size: int) -> list[Group]:
    """Divide the samples of a run, by id, into groups of `size`; the last group is padded with the first samples.

    Args:
        ids: ids of all samples of the run, (N,) int64, including fooled ones, so that the groups never change.
        size: at most N.
    """
    order = ids.argsort(stable=True).tolist()
    n = len(order)
    return [
        Group(tuple(order[(start + i) % n] for i in range(size)), min(size, n - start))
        for start in range(0, n, size)
    ]


class Queue:
    """The waiting groups in the order of their rank.

    Args:
        ids: ids of all samples of the run, (N,).
        attacked: indices of the samples to attack.
        ranks: number of rows per sample.
        size: number of samples per group.

    Attributes:
        next: index of the first waiting group.
    """

    def __init__(self, ids: Tensor, attacked: set[int], ranks: int, size: int):
        groups = [g for g in fixed_groups(ids, size) if not attacked.isdisjoint(g.members[: g.size])]
        self.groups = [(rank, group) for rank in range(ranks) for group in groups]
        self.next = 0
        # Number of rows before each group, because `waiting` is called ten times a second.
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
        """Number of rows of all groups."""
        return self._before[-1]

    @property
    def waiting(self) -> int:
        """Number of rows of the waiting groups."""
        return self._before[-1] - self._before[self.next]


@dataclass
class Lanes:
    """The state of each lane, (S,) each, on the CPU.

    Attributes:
        sample: sample of the lane's row; -1 for an idle lane, whose row (of the sample `held`) is padding.
        held: sample whose image is in the lane.
        rank: rank of the row.
        queries: forward and backward passes of the row, (S, 2).
        kept_draws: number of draws in which the kept point fools the judge.
        kept_distance: distance of the kept point from its image, for minimum-norm attacks.
        exact: whether the row goes on in fp32, see `robench.engine.exact_rows`, bool (S,).
        probes: whether the next query needs only logits, for attacks with two kinds of queries, bool (S,).
        waited: number of successive turns of the other kind.
    """

    sample: Tensor
    held: Tensor
    rank: Tensor
    queries: Tensor
    kept_draws: Tensor
    kept_distance: Tensor
    exact: Tensor
    probes: Tensor
    waited: Tensor

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
            exact=zeros > 0,
            probes=zeros > 0,
            waited=zeros.clone(),
        )

    @property
    def active(self) -> Tensor:
        """Lanes with a row that counts, bool (S,)."""
        return self.sample >= 0

    def idle_blocks(self, size: int) -> list[int]:
        """Blocks of `size` lanes without an active row."""
        return (self.sample.view(-1, size) < 0).all(1).nonzero()[:, 0].tolist()

    def start(self, lanes: Tensor) -> None:
        """Reset lanes for new rows."""
        self.queries[lanes] = 0
        self.exact[lanes] = False
        self.waited[lanes] = 0
        self.drop(lanes.numpy())

    def is_probing(self, active: Tensor) -> bool:
        """Whether this turn has the queries for logits: if enough lanes need one, or one has waited long."""
        probing = active & self.probes
        enough = int(probing.sum()) >= max(_WORTH_A_TURN * int(active.sum()), 1)
        return enough or bool((probing & (self.waited >= _PATIENCE)).any())

    def drop(self, lanes: np.ndarray | int) -> None:
        """Reset the kept points of lanes."""
        self.kept_draws.numpy()[lanes] = 0
        self.kept_distance.numpy()[lanes] = torch.inf


def named(prefix: str, value: Any) -> dict[str, Tensor]:
    """The tensors of a dataclass with a prefix before their names, for a checkpoint."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors(value).items()}


def restored(prefix: str, template: Any, saved: dict[str, Tensor], device: torch.device | None = None) -> Any:
    """Replace the tensors of `template` with those that `named` returned."""
    return replace(
        template, **{name: saved[f"{prefix}.{name}"].to(device or "cpu") for name in tensors(template)}
    )


def put(value: Any, lanes: Tensor, new: Any, rows: Tensor, unchanged: Any = None) -> Any:
    """Write the `rows` of `new` into the `lanes` of a state (or Rows).

    Args:
        unchanged: the rows of `value` before the change; fields of `new` that are the same tensor are not written.
    """
    old = tensors(unchanged) if unchanged is not None else {}
    changed = {
        name: write(getattr(value, name).clone(), lanes, tensor.index_select(0, rows))
        for name, tensor in tensors(new).items()
        if tensor is not old.get(name)
    }
    return replace(value, **changed)


def in_parts(lanes: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    """Split lanes into parts of `size`, each with the index of its first lane."""
    for start in range(0, len(lanes), size):
        yield start, lanes[start : start + size]

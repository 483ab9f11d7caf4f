"""Queries of a row several steps ahead, for attacks whose next queries are known while candidates are rejected."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robench.attacks._base import Attack, Rows, gather
from robench.engine.batched_model import Network

# Expected number of accepted candidates in the queries that a row makes at once.
_ACCEPTED = 0.3


class Recent:
    """A mean in which recent values count more.

    Args:
        value: the mean before the first value.
        weight: weight of the last value.
    """

    def __init__(self, value: float, weight: float):
        self.value, self.weight = value, weight

    def note(self, value: float) -> None:
        """Add a value."""
        self.value += self.weight * (value - self.value)


@dataclass(frozen=True)
class Plan:
    """The entries of one call: entry i is query `offset[i]` ahead of row `row[i]`; the rows alternate.

    Attributes:
        lanes: lanes of the active rows, (M,) int64 on the CPU.
        entry, row, offset: (N,) int64 on the CPU.
        source, ahead: lane and offset of each entry on the device of the lanes.
        rows: the row of each entry.
    """

    lanes: Tensor
    entry: Tensor
    row: Tensor
    offset: Tensor
    source: Tensor
    ahead: Tensor
    rows: Rows

    def first(self, event: Tensor) -> Tensor:
        """The first entry of each row with an event, (M,); N if there is none."""
        none = len(event)
        candidates = torch.where(event, self.entry, none)
        return torch.full_like(self.lanes, none).scatter_reduce(0, self.row, candidates, "amin")

    def last(self, valid: Tensor) -> Tensor:
        """The last valid entry of each row, (M,); only the last entries of a row are invalid."""
        candidates = torch.where(valid, self.entry, -1)
        return torch.full_like(self.lanes, -1).scatter_reduce(0, self.row, candidates, "amax")


class Ahead:
    """Chooses how many queries of each row to make at once.

    Attributes:
        accepted: recent fraction of queries that were accepted; each makes the queries after it void.
    """

    def __init__(self):
        self.accepted = Recent(1.0, weight=0.1)
        self.plan: Plan | None = None

    def note(self, accepted: Tensor, queries: Tensor) -> None:
        """Note the numbers of accepted and of all queries."""
        self.accepted.note(int(accepted) / int(queries))

    def choose(self, network: Network, attack: Attack, active: Tensor, rows: Rows) -> Plan | None:
        """The plan for the next call, or None to query each row once.

        A call has as many entries as fit into a batch if the network needs whole batches, else as many as
        are expected to be used, with few exceptions.

        Args:
            active: lanes with active rows, bool (S,) on the CPU.
            rows: the rows of all lanes.
        """
        count, size = int(active.sum()), network.batch_size
        if not network.shapes.rigid:
            size = count * min(1 + int(_ACCEPTED / max(self.accepted.value, 1e-9)), size // count)
            # Further queries take the place of padding.
            size = network.shapes.fit("logits", size)
        size = min(size, count * attack.horizon)
        planned = len(self.plan.source) if self.plan else count
        # A new plan copies all rows.
        if self.plan is None or not 0.7 * planned <= size <= 1.3 * planned:
            self.plan = None if size <= count else _plan(size, active, rows)
        return self.plan

    def forget(self) -> None:
        """Drop the plan, because the rows or lanes have changed."""
        self.plan = None


def _plan(size: int, active: Tensor, rows: Rows) -> Plan:
    lanes, entry = active.nonzero()[:, 0], torch.arange(size)
    row, offset = entry % len(lanes), entry // len(lanes)
    source = lanes[row].to(rows.y.device)
    return Plan(lanes, entry, row, offset, source, offset.to(rows.y.device), gather(rows, source))

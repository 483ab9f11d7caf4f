"""What plays and what came of it: the parties of one attack, and its results sample by sample."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robench.attacks._base import Attack, Problem
from robench.data._lazy_images import Stack
from robench.engine.adversarial_examples import Found
from robench.engine.batched_model import Judge, Network

_NEVER = 1 << 40


@dataclass
class Table:
    """What is known of each sample after an attack has had its turn; every tensor on the CPU.

    Attributes:
        draws: (n,) in how many of the judge's draws the best candidate fools it.
        rank, steps: (n,) of the row that won; rank is _NEVER where none did.
        forward, backward: (n, ranks) passes of each row.
        found: the winning point of each sample that has one; the image itself, (C, H, W), where a norm bounds it.
    """

    draws: Tensor
    rank: Tensor
    steps: Tensor
    forward: Tensor
    backward: Tensor
    found: Found = field(default_factory=Found)

    @classmethod
    def empty(cls, n: int, ranks: int, found: Found | None = None) -> "Table":
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64)

        return cls(
            zeros(n),
            torch.full((n,), _NEVER),
            zeros(n),
            zeros(n, ranks),
            zeros(n, ranks),
            Found() if found is None else found,
        )

    def spent(self, full: int, every: bool = False) -> tuple[Tensor, Tensor]:
        """Forward and backward passes a sample, (n,) each, as if its rows had been played in turn.

        Args:
            full: draws of the judge; the rows after one that fools all of them cost nothing, unless `every`
                row is played.
        """
        if every:
            return self.forward.sum(1), self.backward.sum(1)
        last = torch.where(self.draws == full, self.rank, _NEVER)[:, None]
        counted = torch.arange(self.forward.shape[1])[None, :] <= last
        return (self.forward * counted).sum(1), (self.backward * counted).sum(1)


@dataclass(frozen=True)
class Battle:
    """Everything one attack needs that does not change while it plays.

    Attributes:
        network: the surrogate.
        judge: the whole defense.
        same: whether the surrogate's logits are the judge's verdict.
        blind: whether the attacker may not ask the judge: it is asked once a row, at the end.
        x, y, ids, clean_logits: of every sample; kept where the data set is, moved a row at a time.
        device: where the lanes are.
    """

    attack: Attack[Any]
    problem: Problem
    network: Network
    judge: Judge
    same: bool
    blind: bool
    x: Tensor | Stack
    y: Tensor
    ids: Tensor
    clean_logits: Tensor
    device: torch.device

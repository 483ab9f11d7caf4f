"""What an attack works with, and its results sample by sample."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from robench.attacks._base import Attack, Problem
from robench.data._lazy_images import LazyImages
from robench.engine.adversarial_examples import AdversarialExamples
from robench.engine.batched_model import Judge, Network

_NEVER = 1 << 40


@dataclass(frozen=True)
class Samples:
    """The images of a run.

    Attributes:
        x: (N, C, H, W) float32 in [0, 1], kept where the data set is; y: (N,) int64; ids: (N,) int64.
    """

    x: Tensor | LazyImages
    y: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.x)


@dataclass
class SampleResults:
    """What is known of each sample after an attack; every tensor on the CPU.

    Attributes:
        draws: (n,) in how many of the judge's draws the best candidate fools it.
        rank, steps: (n,) of the row that won; rank is _NEVER where none did.
        forward, backward: (n, ranks) passes of each row.
        examples: the winning point of each sample that has one; the image itself, (C, H, W), where a norm bounds it.
    """

    draws: Tensor
    rank: Tensor
    steps: Tensor
    forward: Tensor
    backward: Tensor
    examples: AdversarialExamples = field(default_factory=AdversarialExamples)

    @classmethod
    def empty(cls, n: int, ranks: int, examples: AdversarialExamples | None = None) -> "SampleResults":
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64)

        return cls(
            zeros(n),
            torch.full((n,), _NEVER),
            zeros(n),
            zeros(n, ranks),
            zeros(n, ranks),
            AdversarialExamples() if examples is None else examples,
        )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All but the examples, by name."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "examples"}

    def spent(self, full: int, every: bool = False) -> tuple[Tensor, Tensor]:
        """Forward and backward passes a sample, (n,) each, as if its rows had run one after another.

        Args:
            full: draws of the judge; the rows after one that fools all of them cost nothing, unless `every`
                row runs.
        """
        if every:
            return self.forward.sum(1), self.backward.sum(1)
        last = torch.where(self.draws == full, self.rank, _NEVER)[:, None]
        counted = torch.arange(self.forward.shape[1])[None, :] <= last
        return (self.forward * counted).sum(1), (self.backward * counted).sum(1)


@dataclass(frozen=True)
class AttackContext:
    """Everything one attack needs that does not change while it runs.

    Attributes:
        network: the surrogate.
        judge: the whole defense.
        surrogate_is_judge: whether the surrogate's logits are the judge's verdict.
        no_verdict_feedback: whether the attacker does not learn of verdicts: the judge is asked once a row, at the
            end.
        samples, clean_logits: of the whole run; moved to the device a row at a time.
        device: where the lanes are.
    """

    attack: Attack[Any]
    problem: Problem
    network: Network
    judge: Judge
    surrogate_is_judge: bool
    no_verdict_feedback: bool
    samples: Samples
    clean_logits: Tensor
    device: torch.device

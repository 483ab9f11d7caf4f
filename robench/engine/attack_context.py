"""The inputs of an attack, and its results for each sample."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from robench.attacks._base import Attack, Problem
from robench.data._lazy_images import LazyImages
from robench.engine.adversarial_examples import AdversarialExamples
from robench.engine.batched_model import Judge, Network
from robench.engine.loss_monitor import COLUMNS, LossStats

_NEVER = 1 << 40


@dataclass(frozen=True)
class Samples:
    """The images of a run.

    Attributes:
        x: images, (N, C, H, W) float32 in [0, 1], on the device of the dataset.
        y: labels, (N,) int64.
        ids: indices in the dataset, (N,) int64.
    """

    x: Tensor | LazyImages
    y: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.x)


@dataclass
class SampleResults:
    """The results of an attack for each sample; all tensors are on the CPU.

    Attributes:
        draws: (n,) number of the judge's noise draws that the best candidate fools.
        rank, steps: (n,) rank and forward passes of the winning row; rank is _NEVER if no row won.
        forward, backward: (n, ranks) passes of each row.
        counts: (n, ranks, len(COLUMNS)) int32, what `LossStats` counts, for each row.
        examples: winning point of each fooled sample; under a norm threat, the image itself, (C, H, W).
    """

    draws: Tensor
    rank: Tensor
    steps: Tensor
    forward: Tensor
    backward: Tensor
    counts: Tensor
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
            zeros(n, ranks, len(COLUMNS)).int(),
            AdversarialExamples() if examples is None else examples,
        )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All fields except the examples, by name."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "examples"}

    def spent(self, full: int, every: bool = False) -> tuple[Tensor, Tensor]:
        """Forward and backward passes per sample, (n,) each, as if its rows had run sequentially.

        Args:
            full: number of draws of the judge.
            every: whether to count all rows; otherwise rows after one that fools all draws are not counted.
        """
        is_counted = self._is_counted(full, every)
        return (self.forward * is_counted).sum(1), (self.backward * is_counted).sum(1)

    def stats(self, full: int, every: bool = False) -> LossStats:
        """The statistics over the rows that `spent` counts."""
        return LossStats(*self.counts[self._is_counted(full, every)].sum(0).tolist())

    def _is_counted(self, full: int, every: bool) -> Tensor:
        last = torch.where((self.draws == full) & (not every), self.rank, _NEVER)[:, None]
        return torch.arange(self.forward.shape[1])[None, :] <= last


@dataclass(frozen=True)
class AttackContext:
    """The inputs of one attack that stay constant while it runs.

    Attributes:
        attack: the attack.
        problem: threat model, number of classes and random numbers.
        network: the surrogate.
        judge: the full defense.
        surrogate_is_judge: whether the surrogate's logits are the judge's verdict.
        no_verdict_feedback: whether the attacker receives no verdicts; the judge is queried once per row, at its end.
        samples: all samples of the run; rows are moved to the device when they start.
        clean_logits: logits of all samples.
        device: device of the lanes.
        exact: see `robench.engine.setup.Parties`.
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
    exact: Network | None = None

    @property
    def sent(self) -> tuple[int, int]:
        """Number of rows sent to surrogate and judge so far, forward and backward."""
        # The surrogate may be the judge's network.
        networks = {
            id(n): n for n in (self.network, self.judge.network, self.exact) if n is not None
        }.values()
        return sum(n.sent[0] for n in networks), sum(n.sent[1] for n in networks)

"""Attacks that climb a gradient estimated from differences of the loss at pairs of points, by logits alone."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, Attack, Problem, Rows, State, check_count, spread, where
from robench.attacks._losses import UNTARGETED, check_loss, margin


@dataclass(frozen=True)
class EstimatedState(State):
    """Where each lane stands in its step.

    `told` counts the answers of this step: the first is at `x` itself, then come pairs about it along `direction`;
    `ahead` is the loss at the first of a pair, `total` what the pairs have said of the gradient. `first` and `second`
    are moments for who moves.
    """

    x: Tensor
    best: Tensor
    best_margin: Tensor
    direction: Tensor
    ahead: Tensor
    total: Tensor
    first: Tensor
    second: Tensor
    told: Tensor
    step: Tensor


@dataclass(frozen=True)
class Estimated(Attack[EstimatedState]):
    """Base of attacks by estimated gradients; gives `draw` and `move`.

    Args:
        loss: "ce", "dlr" or "margin", of the logits.
        steps: of the search; 2 * samples + 1 forward passes each, and one more at the end.
        samples: pairs of points a step.
        delta: how far the points of a pair are from the middle, in units of the direction.
        step_size: in [0, 1] pixels.
    """

    gradient_free: ClassVar[bool] = True

    loss: str = "margin"
    steps: int = 20
    samples: int = 128
    delta: float = 0.01
    step_size: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss)
        check_count("samples", self.samples)
        if not self.delta > 0 or not self.step_size > 0:
            raise ValueError(f"delta={self.delta!r}, step_size={self.step_size!r}: expected numbers above 0")

    def draw(self, problem: Problem, rows: Rows, index: Tensor) -> Tensor:
        """The direction of each lane's pair `index` (S,), counted from the start of the search."""
        raise NotImplementedError

    def move(
        self, problem: Problem, rows: Rows, state: EstimatedState, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next point and the moments, from the estimated gradient."""
        raise NotImplementedError

    @property
    def norms(self) -> tuple[str, ...]:
        return ("Linf", "L2")

    @property
    def num_queries(self) -> int:
        return self.steps * (2 * self.samples + 1) + 1

    def init(self, problem: Problem, rows: Rows) -> EstimatedState:
        count, zero = torch.zeros_like(rows.y), torch.zeros_like(rows.x)
        low = torch.full_like(rows.x[:, 0, 0, 0], -math.inf)
        return EstimatedState(rows.x, rows.x, low, zero, low, zero, zero, zero, count, count)

    def ask(self, problem: Problem, rows: Rows, state: EstimatedState) -> Ask:
        sign = torch.where(state.told == 0, 0, 2 * (state.told % 2) - 1)
        return Ask((state.x + spread(sign * self.delta, state.x) * state.direction).clamp(0, 1))

    def tell(self, problem: Problem, rows: Rows, state: EstimatedState, answer: Answer) -> EstimatedState:
        loss, fooled = UNTARGETED[self.loss](answer.logits, rows.y), margin(answer.logits, rows.y)
        middle, second = state.told == 0, (state.told > 0) & (state.told % 2 == 0)
        better = middle & (fooled > state.best_margin)
        gain = torch.where(second, (state.ahead - loss) / (2 * self.delta * self.samples), 0)
        after = replace(
            state,
            best=where(better, state.x, state.best),
            best_margin=torch.where(better, fooled, state.best_margin),
            ahead=loss,
            total=torch.addcmul(state.total, spread(gain, state.total), state.direction),
            told=state.told + 1,
        )
        over = after.told > 2 * self.samples
        if bool(over.any()):
            x, first, other = self.move(problem, rows, after, after.total)
            after = replace(
                after,
                x=where(over, x, after.x),
                total=where(over, torch.zeros_like(after.total), after.total),
                first=where(over, first, after.first),
                second=where(over, other, after.second),
                told=torch.where(over, 0, after.told),
                step=after.step + over,
            )
        fresh = after.told % 2 == 1
        if not bool(fresh.any()):
            return after
        lanes = fresh.nonzero()[:, 0]
        index = after.step[lanes] * self.samples + after.told[lanes] // 2
        picked = replace(rows, x=rows.x[lanes], sample=rows.sample[lanes], rank=rows.rank[lanes])
        direction = after.direction.index_copy(0, lanes, self.draw(problem, picked, index))
        return replace(after, direction=direction)

    def finished(self, state: EstimatedState) -> Tensor:
        return (state.step >= self.steps) & (state.told > 0)

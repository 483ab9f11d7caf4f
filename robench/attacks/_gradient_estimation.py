"""Score-based attacks that follow a gradient estimated from differences of the loss at pairs of points."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks._base import (
    Answer,
    Ask,
    Attack,
    Problem,
    Rows,
    State,
    check_count,
    occurs,
    spread,
    where,
)
from robench.attacks._losses import UNTARGETED, check_loss, margin


@dataclass(frozen=True)
class EstimatedState(State):
    """The state of each lane within its step.

    `answers` counts those in this step: the first is at `x` itself, followed by pairs around it along `direction`.
    `ahead` is the loss at the first point of a pair, `total` the sum of the gradient estimates. `first` and `second`
    are moments for use by `move`.
    """

    x: Tensor
    best: Tensor
    best_margin: Tensor
    direction: Tensor
    ahead: Tensor
    total: Tensor
    first: Tensor
    second: Tensor
    answers: Tensor
    step: Tensor


@dataclass(frozen=True)
class Estimated(Attack[EstimatedState]):
    """Base of attacks with estimated gradients; a subclass implements `draw` and `move`.

    Args:
        loss: "ce", "dlr" or "margin".
        steps: iterations, with 2 * samples + 1 forward passes each and one more at the end.
        samples: number of pairs of points in each step.
        delta: distance of the points of a pair from their midpoint, in units of the direction.
        step_size: step size, in [0, 1] pixel values.
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
        """The direction of pair `index` (S,) of each lane, counted from the start of the search."""
        raise NotImplementedError

    def move(
        self, problem: Problem, rows: Rows, state: EstimatedState, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next point and both moments, from the estimated gradient."""
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
        sign = torch.where(state.answers == 0, 0, 2 * (state.answers % 2) - 1)
        return Ask((state.x + spread(sign * self.delta, state.x) * state.direction).clamp(0, 1))

    def tell(self, problem: Problem, rows: Rows, state: EstimatedState, answer: Answer) -> EstimatedState:
        loss, fooled = UNTARGETED[self.loss](answer.logits, rows.y), margin(answer.logits, rows.y)
        middle, second = state.answers == 0, (state.answers > 0) & (state.answers % 2 == 0)
        better = middle & (fooled > state.best_margin)
        gain = torch.where(second, (state.ahead - loss) / (2 * self.delta * self.samples), 0)
        after = replace(
            state,
            best=where(better, state.x, state.best),
            best_margin=torch.where(better, fooled, state.best_margin),
            ahead=loss,
            total=torch.addcmul(state.total, spread(gain, state.total), state.direction),
            answers=state.answers + 1,
        )
        over = after.answers > 2 * self.samples
        if occurs(over):
            x, first, other = self.move(problem, rows, after, after.total)
            after = replace(
                after,
                x=where(over, x, after.x),
                total=where(over, torch.zeros_like(after.total), after.total),
                first=where(over, first, after.first),
                second=where(over, other, after.second),
                answers=torch.where(over, 0, after.answers),
                step=after.step + over,
            )
        fresh = after.answers % 2 == 1
        if not bool(fresh.any()):
            return after
        lanes = fresh.nonzero()[:, 0]
        index = after.step[lanes] * self.samples + after.answers[lanes] // 2
        picked = replace(rows, x=rows.x[lanes], sample=rows.sample[lanes], rank=rows.rank[lanes])
        direction = after.direction.index_copy(0, lanes, self.draw(problem, picked, index))
        return replace(after, direction=direction)

    def finished(self, state: EstimatedState) -> Tensor:
        return (state.step >= self.steps) & (state.answers > 0)

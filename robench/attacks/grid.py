"""Exploring the landscape of spatial robustness (Engstrom et al. 2019, arXiv 1712.02779): grid search."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, Attack, Problem, Rows, State, where
from robench.attacks._losses import ball, cross_entropy
from robench.core.errors import UsageError
from robench.core.registry import attacks

# The most parameters that a grid is suggested for.
_FEW = 6


@dataclass(frozen=True)
class GridState(State):
    """The index of the next point, and the best point so far with its loss."""

    step: Tensor
    best: Tensor
    best_loss: Tensor


@attacks.register("grid")
@dataclass(frozen=True)
class Grid(Attack[GridState]):
    """Grid search over few parameters, such as those of `spatial`; uses logits only.

    Args:
        points: number of points along each parameter, including both ends; the paper uses 31 angles and 5 x 5
            translations.
    """

    gradient_free: ClassVar[bool] = True

    points: tuple[int, ...] = (31, 5, 5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.points or any(not isinstance(n, int) or n < 1 for n in self.points):
            raise ValueError(f"points={self.points!r}: expected whole numbers of at least 1")

    @property
    def norms(self) -> tuple[str, ...]:
        return ("Linf",)

    @property
    def num_queries(self) -> int:
        return math.prod(self.points)

    def init(self, problem: Problem, rows: Rows) -> GridState:
        parameters = rows.x[0].numel()
        if parameters != len(self.points):
            advice = "use pgd"
            if parameters <= _FEW:
                advice = f"give a number of points for each, such as grid(points={(5,) * parameters})"
            raise UsageError(
                f"grid(points={self.points}) is for {len(self.points)} parameters, and this threat has {parameters:,}: "
                f"{advice}"
            )
        worst = torch.full_like(rows.clean_logits[:, 0], -math.inf)
        return GridState(torch.zeros_like(rows.y), rows.x, worst)

    def ask(self, problem: Problem, rows: Rows, state: GridState) -> Ask:
        low, high = (end.flatten(1) for end in ball(rows, problem.threat.eps))
        rest, shares = state.step.clamp_max(self.num_queries - 1), []
        for count in reversed(self.points):
            shares.append((rest % count) / (count - 1) if count > 1 else torch.full_like(low[:, 0], 0.5))
            rest = rest // count
        share = torch.stack(shares[::-1], 1)
        return Ask((low + share * (high - low)).view_as(rows.x))

    def tell(self, problem: Problem, rows: Rows, state: GridState, answer: Answer) -> GridState:
        loss = cross_entropy(answer.logits, rows.y)
        better = loss > state.best_loss
        return GridState(
            state.step + 1, where(better, answer.x, state.best), torch.where(better, loss, state.best_loss)
        )

    def finished(self, state: GridState) -> Tensor:
        return state.step >= self.num_queries

"""Towards deep learning models resistant to adversarial attacks (Madry et al. 2018, arXiv 1706.06083)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, GradientAttack, Problem, Rows, State, where
from robench.attacks._losses import check_loss, into_ball, normalize, objective, random_start
from robench.core.registry import attacks


@dataclass(frozen=True)
class PGDState(State):
    """The next point, the best one so far and its loss, and the number of answers."""

    x: Tensor
    best: Tensor
    best_loss: Tensor
    step: Tensor
    target: Tensor


@attacks.register("pgd")
@dataclass(frozen=True)
class PGD(GradientAttack[PGDState]):
    """Projected gradient descent in Linf and L2.

    Args:
        steps: iterations, with one forward and one backward pass each, and one more of both at the end unless `last`.
        step_size: step size, in [0, 1] pixel values; 0 for 2.5 eps / steps.
        rel_step_size: step size as a fraction of eps, in place of `step_size`; 0 for not set.
        random_start: start at a random point of the ball instead of the clean image.
        last: judge only the last iterate, as the code of many papers does. By default every iterate is judged, which
            is at least as strong on a deterministic defense.
    """

    ascends: ClassVar[bool] = True

    steps: int = 20
    step_size: float = 0.0
    rel_step_size: float = 0.0
    random_start: bool = True
    last: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss)
        for name in ("step_size", "rel_step_size"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected 0 (automatic) or more")
        if self.step_size and self.rel_step_size:
            raise ValueError("step_size and rel_step_size: expected at most one of them")
        if not isinstance(self.last, bool):
            raise ValueError(f"last={self.last!r}: expected True or False")

    @property
    def judged_at_end(self) -> bool:
        return self.last

    @property
    def norms(self) -> tuple[str, ...]:
        return ("Linf", "L2")

    def init(self, problem: Problem, rows: Rows) -> PGDState:
        x = random_start(rows, problem, problem.threat.norm) if self.random_start else rows.x
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        target = self.target(rows) if self.targets else rows.y
        return PGDState(x, x, torch.full_like(count, -torch.inf, dtype=x.dtype), count, target)

    def ask(self, problem: Problem, rows: Rows, state: PGDState) -> Ask:
        return Ask(state.x, objective(self.loss, state.target if self.targets else None))

    def tell(self, problem: Problem, rows: Rows, state: PGDState, answer: Answer) -> PGDState:
        threat = problem.threat
        better = answer.loss > state.best_loss
        size = self.step_size or self.rel_step_size * threat.eps or 2.5 * threat.eps / self.steps
        x = into_ball(state.x + size * normalize(answer.grad, threat.norm), rows, threat)
        return PGDState(
            x=x,
            best=x if self.last else where(better, state.x, state.best),
            best_loss=torch.where(better, answer.loss, state.best_loss),
            step=state.step + 1,
            target=state.target,
        )

    def finished(self, state: PGDState) -> Tensor:
        return state.step >= self.steps if self.last else state.step > self.steps

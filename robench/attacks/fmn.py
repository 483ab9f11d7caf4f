"""Fast minimum-norm adversarial attacks through adaptive norm constraints (Pintor et al. 2021, arXiv 2102.12827).

Each step follows the gradient and is projected onto a ball whose radius tracks the boundary: the estimated distance to
the boundary until a point fools, then smaller by a fraction after a success and larger after a failure (Alg. 1).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, Attack, Problem, Rows, State, spread, where
from robench.attacks._losses import margin, objective
from robench.attacks._projections import project_l1_box
from robench.attacks.ddn import cosine
from robench.core.registry import attacks
from robench.threats.threat import rownorm

_DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
_LAST_GAMMA, _LAST_STEP = 0.001, 0.01


@dataclass(frozen=True)
class FMNState(State):
    """The state of each lane; `radius` is that of the ball, `largest` that of the largest perturbation in the box."""

    x: Tensor
    radius: Tensor
    largest: Tensor
    best: Tensor
    distance: Tensor
    target: Tensor
    step: Tensor


@attacks.register("fmn")
@dataclass(frozen=True)
class FMN(Attack[FMNState]):
    """FMN in Linf, L2 and L1: a minimum-norm attack, independent of the radius.

    The loss is the margin. The L1 projection respects the box, whereas the paper clips to it afterwards.

    Args:
        steps: iterations, with one forward and one backward pass each.
        targets: number of target classes, most likely first; 0 for the untargeted margin.
        eot: draws of a randomized surrogate averaged for each gradient.
        step_size: length of the first step, in L2; decays to one hundredth on a cosine schedule.
        gamma: initial relative change of the radius; decays to 0.001 on a cosine schedule.
        minimise: continue after success to find the nearest adversarial example.
    """

    minimum_norm: ClassVar[bool] = True
    in_pixels: ClassVar[bool] = True

    steps: int = 100
    targets: int = 0
    eot: int = 1
    step_size: float = 1.0
    gamma: float = 0.05
    minimise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.step_size > 0 or not 0 < self.gamma < 1:
            raise ValueError(
                f"step_size={self.step_size!r}, gamma={self.gamma!r}: expected numbers above 0, and gamma below 1"
            )

    @property
    def num_queries(self) -> int:
        return self.steps

    def init(self, problem: Problem, rows: Rows) -> FMNState:
        infinite = torch.full_like(rows.x[:, 0, 0, 0], math.inf)
        return FMNState(
            x=rows.x,
            radius=infinite,
            largest=rownorm(torch.maximum(rows.x, 1 - rows.x), problem.threat.norm),
            best=rows.x,
            distance=infinite,
            target=self.target(rows) if self.targets else rows.y,
            step=torch.zeros_like(rows.y),
        )

    def ask(self, problem: Problem, rows: Rows, state: FMNState) -> Ask:
        return Ask(state.x, objective("margin", state.target if self.targets else None))

    def tell(self, problem: Problem, rows: Rows, state: FMNState, answer: Answer) -> FMNState:
        norm = problem.threat.norm
        delta = answer.x - rows.x
        size = rownorm(delta, norm)
        fools = margin(answer.logits, rows.y) > 0
        nearer = fools & (size < state.distance)
        distance = torch.where(nearer, size, state.distance)
        gamma = cosine(state.step, self.steps, self.gamma, _LAST_GAMMA)
        # Before the first success, the distance to the boundary is estimated from the linearized loss. It is slightly
        # enlarged because a point exactly on the boundary would stay there.
        length = rownorm(answer.grad, "L2")
        slope = (length if norm == "L2" else rownorm(answer.grad, _DUAL[norm])).clamp_min(1e-12)
        guess = (size + answer.loss.abs() / slope) * (1 + _LAST_GAMMA)
        radius = torch.where(distance < math.inf, state.radius * (1 + gamma), guess)
        radius = torch.where(fools, torch.minimum(state.radius * (1 - gamma), distance), radius)
        radius = torch.minimum(radius, state.largest)
        step = spread(self.step_size * cosine(state.step, self.steps, 1.0, _LAST_STEP), delta)
        direction = answer.grad / spread(length + 1e-12, delta)
        return FMNState(
            x=_into(rows.x, direction.mul_(step).add_(delta), radius, norm),
            radius=radius,
            largest=state.largest,
            best=where(nearer, answer.x, state.best),
            distance=distance,
            target=state.target,
            step=state.step + 1,
        )

    def finished(self, state: FMNState) -> Tensor:
        return state.step >= self.steps


def _into(x: Tensor, delta: Tensor, radius: Tensor, norm: str) -> Tensor:
    """x plus the perturbation, which is overwritten, projected onto a ball of radius (S,) for each row, in [0, 1]."""
    if norm == "L1":
        inside = project_l1_box(x, delta, radius)
    elif norm == "Linf":
        limit = spread(radius, delta)
        inside = delta.clamp_(-limit, limit)
    else:
        factor = (radius / rownorm(delta, "L2").clamp_min(1e-12)).clamp_max(1.0)
        inside = delta.mul_(spread(factor, delta))
    return inside.add_(x).clamp_(0, 1)

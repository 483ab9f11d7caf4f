"""Fast minimum-norm adversarial attacks through adaptive norm constraints (Pintor et al. 2021, arXiv 2102.12827).

A step along the gradient, projected onto a ball whose radius follows the boundary: what is estimated to lie between
as long as nothing fools, then a share less where the point fools and a share more where it does not (Alg. 1).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, Attack, Problem, Rows, State, spread, where
from robench.attacks._losses import margin, normalize, objective
from robench.attacks._projections import project_l1_box
from robench.attacks.ddn import cosine
from robench.core.registry import attacks
from robench.threats.threat import rownorm

_DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
_LAST_GAMMA, _LAST_STEP = 0.001, 0.01


@dataclass(frozen=True)
class FMNState(State):
    """The next point, the radius, and the nearest point that fools."""

    x: Tensor
    radius: Tensor
    best: Tensor
    distance: Tensor
    target: Tensor
    step: Tensor


@attacks.register("fmn")
@dataclass(frozen=True)
class FMN(Attack[FMNState]):
    """FMN in Linf, L2 and L1: a minimum-norm attack, which does not know of the radius.

    Its loss is the margin. The L1 projection heeds the box, which the paper clips to afterwards.

    Args:
        steps: iterations; one forward and one backward pass each.
        targets: 0 for the untargeted margin, else how many classes are aimed at, the most likely first.
        eot: draws of a randomised surrogate averaged for each gradient.
        step_size: of the first step, in L2; it falls to a hundredth on a cosine.
        gamma: by what share the radius changes at first; it falls to 0.001 on a cosine.
        minimise: play on to the nearest image when one within the threat has been found.
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
        # Where nothing has fooled yet, the boundary is as far as the linearised loss says, and a little more: a point
        # on the boundary itself would stay there.
        slope = rownorm(answer.grad, _DUAL[norm]).clamp_min(1e-12)
        guess = (size + answer.loss.abs() / slope) * (1 + _LAST_GAMMA)
        radius = torch.where(distance < math.inf, state.radius * (1 + gamma), guess)
        radius = torch.where(fools, torch.minimum(state.radius * (1 - gamma), distance), radius)
        # No perturbation inside the box is larger than this.
        radius = torch.minimum(radius, rownorm(torch.maximum(rows.x, 1 - rows.x), norm))
        step = spread(self.step_size * cosine(state.step, self.steps, 1.0, _LAST_STEP), delta)
        return FMNState(
            x=_into(rows.x, delta + step * normalize(answer.grad, "L2"), radius, norm),
            radius=radius,
            best=where(nearer, answer.x, state.best),
            distance=distance,
            target=state.target,
            step=state.step + 1,
        )

    def finished(self, state: FMNState) -> Tensor:
        return state.step >= self.steps


def _into(x: Tensor, delta: Tensor, radius: Tensor, norm: str) -> Tensor:
    """x plus the perturbation projected onto the ball of its own radius (S,), in [0, 1]."""
    if norm == "L1":
        return (x + project_l1_box(x, delta, radius)).clamp(0, 1)
    if norm == "Linf":
        most = spread(radius, delta)
        return (x + delta.clamp(-most, most)).clamp(0, 1)
    factor = (radius / rownorm(delta, "L2").clamp_min(1e-12)).clamp_max(1.0)
    return (x + delta * spread(factor, delta)).clamp(0, 1)

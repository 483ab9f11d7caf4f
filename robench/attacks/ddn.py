"""Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and defenses.

Rony et al. 2018, arXiv 1811.09600: each step follows the gradient, then rescales the perturbation to a norm that
shrinks while the image fools and grows otherwise (Alg. 1).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, Attack, Problem, Rows, State, lanes_of, occurs, spread, where
from robench.attacks._losses import check_loss, margin, normalize, objective
from robench.core.registry import attacks
from robench.threats.threat import rownorm

# Cosine schedule: the last step size, relative to the first.
_LAST = 0.01
# Gradients with a smaller norm count as zero.
_NOTHING = 1e-12


@dataclass(frozen=True)
class DDNState(State):
    """The next point, the norm set for its perturbation, and the nearest adversarial example so far."""

    x: Tensor
    radius: Tensor
    best: Tensor
    distance: Tensor
    target: Tensor
    step: Tensor


@attacks.register("ddn")
@dataclass(frozen=True)
class DDN(Attack[DDNState]):
    """DDN in L2: a minimum-norm attack, independent of the radius.

    Args:
        loss: "ce", "dlr" or "margin".
        steps: iterations, with one forward and one backward pass each.
        targets: number of target classes, most likely first; 0 for the untargeted loss.
        eot: draws of a randomized surrogate averaged for each gradient.
        step_size: length of the first step, in L2.
        radius: norm of the first perturbation.
        gamma: relative change of the norm in each step.
        minimise: continue after success to find the nearest adversarial example.
    """

    minimum_norm: ClassVar[bool] = True
    in_pixels: ClassVar[bool] = True

    loss: str = "ce"
    steps: int = 100
    targets: int = 0
    eot: int = 1
    step_size: float = 1.0
    radius: float = 1.0
    gamma: float = 0.05
    minimise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss)
        if not self.step_size > 0 or not self.radius > 0 or not 0 < self.gamma < 1:
            raise ValueError(
                f"step_size={self.step_size!r}, radius={self.radius!r}, gamma={self.gamma!r}: expected numbers "
                "above 0, and gamma below 1"
            )

    @property
    def norms(self) -> tuple[str, ...]:
        return ("L2",)

    @property
    def num_queries(self) -> int:
        return self.steps

    def init(self, problem: Problem, rows: Rows) -> DDNState:
        zero = torch.zeros_like(rows.x[:, 0, 0, 0])
        return DDNState(
            x=rows.x,
            radius=zero + self.radius,
            best=rows.x,
            distance=zero + math.inf,
            target=self.target(rows) if self.targets else rows.y,
            step=torch.zeros_like(rows.y),
        )

    def ask(self, problem: Problem, rows: Rows, state: DDNState) -> Ask:
        return Ask(state.x, objective(self.loss, state.target if self.targets else None))

    def tell(self, problem: Problem, rows: Rows, state: DDNState, answer: Answer) -> DDNState:
        fools = margin(answer.logits, rows.y) > 0
        delta = answer.x - rows.x
        distance = rownorm(delta, "L2")
        nearer = fools & (distance < state.distance)
        radius = state.radius * torch.where(fools, 1 - self.gamma, 1 + self.gamma)
        # The first perturbation has the initial radius; the norm changes after that.
        radius = torch.where(state.step == 0, state.radius, radius)
        size = self.step_size * cosine(state.step, self.steps, 1.0, _LAST)
        grad = answer.grad
        # Lanes without a row have no gradient.
        length = rownorm(grad, "L2")
        zero = rows.active & (length < _NOTHING)
        if occurs(zero):
            # A random direction where the gradient is zero, as in the authors' code.
            lanes, shape = lanes_of(zero), tuple(grad.shape[1:])
            noise = problem.stream.normal(rows.sample[lanes], rows.rank[lanes], state.step[lanes], shape)
            grad = where(zero, grad.index_copy(0, lanes, noise), grad)
            length = rownorm(grad, "L2")
        moved = delta.add_((grad / spread(length + 1e-12, grad)).mul_(spread(size, grad)))
        # Clipping to the box can only shorten the perturbation.
        x = normalize(moved, "L2").mul_(spread(radius, moved)).add_(rows.x).clamp_(0, 1)
        return DDNState(
            x=x,
            radius=radius,
            best=where(nearer, answer.x, state.best),
            distance=torch.where(nearer, distance, state.distance),
            target=state.target,
            step=state.step + 1,
        )

    def finished(self, state: DDNState) -> Tensor:
        return state.step >= self.steps


def cosine(step: Tensor, steps: int, first: float, last: float) -> Tensor:
    """Cosine schedule from `first` at step 0 to `last` at `steps`, float32 (S,); no attack uses it beyond."""
    return last + (first - last) / 2 * (1 + (math.pi * (step / steps)).cos())

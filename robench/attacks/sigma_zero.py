"""Sigma-zero: gradient-based optimization of L0-norm adversarial examples (Cinà et al. 2024, arXiv 2402.01879)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, Attack, Problem, Rows, State, check_share, spread, where
from robench.attacks._losses import margin
from robench.attacks._objective_types import OnLogits
from robench.core.registry import attacks
from robench.threats.threat import rownorm

UNITS = ("pixel", "component")
# Parameters of Adam; the paper's code uses these defaults.
_BETAS, _TINY = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class SigmaZeroState(State):
    """The next perturbation, the moments of Adam, the threshold, and the sparsest adversarial example so far."""

    delta: Tensor
    mean: Tensor
    square: Tensor
    threshold: Tensor
    best: Tensor
    best_size: Tensor
    step: Tensor


@attacks.register("sigma-zero")
@dataclass(frozen=True)
class SigmaZero(Attack[SigmaZeroState]):
    """Minimize a smooth approximation of the L0 norm by gradient descent (Alg. 1).

    The threat counts pixels, whereas the paper counts components; `unit="component"` follows the paper.

    Args:
        steps: iterations, with one forward and one backward pass each.
        step_size: initial step size; decays to one tenth on a cosine schedule.
        sigma: smoothing of the L0 norm (eq. 3).
        threshold: initial threshold below which changes are set to zero, in [0, 1] pixel values.
        threshold_step: change of the threshold in units of the step size; it rises after a success, else it falls.
        unit: what is counted and set to zero, "pixel" or "component".
    """

    minimum_norm: ClassVar[bool] = True
    in_pixels: ClassVar[bool] = True

    steps: int = 1000
    step_size: float = 1.0
    sigma: float = 1e-3
    threshold: float = 0.3
    threshold_step: float = 0.01
    unit: str = "pixel"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit not in UNITS:
            raise ValueError(f"unit={self.unit!r}: expected one of {', '.join(UNITS)}")
        if min(self.step_size, self.sigma) <= 0:
            raise ValueError("expected a step_size and a sigma above 0")
        check_share("threshold", self.threshold)
        if self.threshold_step < 0:
            raise ValueError(f"threshold_step={self.threshold_step!r}: expected 0 or more")

    @property
    def norms(self) -> tuple[str, ...]:
        return ("L0",)

    def init(self, problem: Problem, rows: Rows) -> SigmaZeroState:
        zero, none = torch.zeros_like(rows.x), torch.zeros_like(rows.clean_logits[:, 0])
        return SigmaZeroState(
            zero, zero, zero, none + self.threshold, rows.x, none + math.inf, torch.zeros_like(rows.y)
        )

    def ask(self, problem: Problem, rows: Rows, state: SigmaZeroState) -> Ask:
        return Ask(self._point(rows, state), OnLogits(_reach))

    def tell(self, problem: Problem, rows: Rows, state: SigmaZeroState, answer: Answer) -> SigmaZeroState:
        fooled = margin(answer.logits, rows.y) > 0
        size = rownorm(state.delta, "L0")
        better = fooled & (size < state.best_size)
        step = state.step + 1
        # Descend the negative margin and the smooth count relative to its maximum (eq. 5).
        grad = self._count_gradient(state.delta) - answer.grad
        grad = grad / spread(grad.flatten(1).abs().amax(1).clamp_min(1e-12), grad)
        mean = torch.lerp(grad, state.mean, _BETAS[0])
        square = torch.lerp(grad.square(), state.square, _BETAS[1])
        corrected = mean / spread(1 - _BETAS[0] ** step.float(), mean)
        scale = (square / spread(1 - _BETAS[1] ** step.float(), square)).sqrt() + _TINY
        delta = state.delta - spread(self._rate(state.step), mean) * corrected / scale
        delta = (rows.x + delta).clamp(0, 1) - rows.x
        move = self.threshold_step * self._rate(step)
        threshold = (state.threshold + torch.where(fooled, move, -move)).clamp(0, 1)
        change = delta.abs().amax(1, keepdim=True) if self.unit == "pixel" else delta.abs()
        return SigmaZeroState(
            delta=delta * (change >= spread(threshold, change)),
            mean=mean,
            square=square,
            threshold=threshold,
            best=where(better, answer.x, state.best),
            best_size=torch.where(better, size, state.best_size),
            step=step,
        )

    def finished(self, state: SigmaZeroState) -> Tensor:
        return state.step >= self.steps

    @property
    def num_queries(self) -> int:
        return self.steps

    def _point(self, rows: Rows, state: SigmaZeroState) -> Tensor:
        return (rows.x + state.delta).clamp(0, 1)

    def _rate(self, step: Tensor) -> Tensor:
        """The step size at a step (S,)."""
        least = self.step_size / 10
        return least + (self.step_size - least) * (1 + (math.pi * step / self.steps).cos()) / 2

    def _count_gradient(self, delta: Tensor) -> Tensor:
        """The gradient of the mean of s / (s + sigma), where s is the square of a component or its sum over a pixel."""
        square = delta.square()
        if self.unit == "pixel":
            square = square.sum(1, keepdim=True)
        return 2 * delta * self.sigma / (square + self.sigma).square() / square[0].numel()


def _reach(logits: Tensor, y: Tensor) -> Tensor:
    """The margin until the surrogate is fooled, then 0, (S,)."""
    return margin(logits, y).clamp_max(0)

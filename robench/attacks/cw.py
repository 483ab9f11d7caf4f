"""Towards evaluating the robustness of neural networks.

Carlini & Wagner 2016, arXiv 1608.04644: the smallest perturbation by Adam on a distance plus c times a margin. In L2
over the tanh of free variables with a search for c (section VI.A), in Linf with a penalty on entries above a shrinking
threshold (section VI.C).
"""

import math
from dataclasses import dataclass, fields
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
    select,
    spread,
    where,
)
from robench.attacks._losses import margin
from robench.attacks._objective_types import OnLogits
from robench.core.errors import UsageError
from robench.core.registry import attacks
from robench.threats.threat import rownorm

# Parameters of Adam, as in its paper.
_FIRST, _SECOND, _TINY = 0.9, 0.999, 1e-8
# Keeps the free variables finite for pixels at 0 or 1.
_INSIDE = 0.999999
_NO_BOUND = 1e10
_SHRINK = 0.9
_FINER = 0.2


@dataclass(frozen=True)
class CWState(State):
    """The state of each lane.

    `w` holds the free variables, `first` and `second` the moments of Adam, `inner` its steps. `c` is the weight of the
    margin, searched between `low` and `high`; `threshold` is used in Linf. `succeeded` says whether this round has had
    a success; `step` counts queries.
    """

    w: Tensor
    first: Tensor
    second: Tensor
    inner: Tensor
    c: Tensor
    low: Tensor
    high: Tensor
    threshold: Tensor
    succeeded: Tensor
    best: Tensor
    distance: Tensor
    target: Tensor
    step: Tensor


@attacks.register("cw")
@dataclass(frozen=True)
class CW(Attack[CWState]):
    """The Carlini & Wagner attack in L2 and Linf: a minimum-norm attack, independent of the radius.

    Args:
        steps: iterations of Adam for each value of c.
        rounds: number of values of c. In Linf a success ends a round early; the attack makes rounds * steps queries.
        targets: number of target classes, most likely first; 0 for the untargeted margin.
        eot: draws of a randomized surrogate averaged for each gradient.
        c: initial weight of the margin.
        step_size: step size of Adam in the free variables; in Linf at most a fifth of the threshold.
        confidence: required margin, the paper's kappa.
        minimise: continue after success to find the nearest adversarial example.
    """

    minimum_norm: ClassVar[bool] = True

    steps: int = 100
    rounds: int = 9
    targets: int = 0
    eot: int = 1
    c: float = 1e-2
    step_size: float = 0.01
    confidence: float = 0.0
    minimise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("rounds", self.rounds)
        if not self.c > 0 or not self.step_size > 0:
            raise ValueError(f"c={self.c!r}, step_size={self.step_size!r}: expected numbers above 0")
        if self.confidence < 0:
            raise ValueError(f"confidence={self.confidence!r}: expected 0 or more")

    @property
    def norms(self) -> tuple[str, ...]:
        return ("Linf", "L2")

    @property
    def num_queries(self) -> int:
        return self.steps * self.rounds

    def init(self, problem: Problem, rows: Rows) -> CWState:
        if problem.threat.norm not in self.norms:
            raise UsageError(
                f"cw is not defined in {problem.threat.norm}: expected {' or '.join(self.norms)} "
                "(fab and apgd-l1 are, in L1)"
            )
        count = torch.zeros_like(rows.y)
        zero = torch.zeros_like(rows.x[:, 0, 0, 0])
        w = _free(rows.x)
        return CWState(
            w=w,
            first=torch.zeros_like(w),
            second=torch.zeros_like(w),
            inner=count,
            c=zero + self.c,
            low=zero,
            high=zero + _NO_BOUND,
            threshold=zero + 1,
            succeeded=count > 0,
            best=rows.x,
            distance=zero + math.inf,
            target=self.target(rows) if self.targets else rows.y,
            step=count,
        )

    def ask(self, problem: Problem, rows: Rows, state: CWState) -> Ask:
        def reached(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
            return self._reached(logits, y, target).clamp_max(self.confidence)

        return Ask(_image(state.w), OnLogits(reached, (state.target,)))

    def _reached(self, logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """The negative of the paper's f6 without its lower bound, (S,): positive on success."""
        return -margin(logits, target) if self.targets else margin(logits, y)

    def tell(self, problem: Problem, rows: Rows, state: CWState, answer: Answer) -> CWState:
        norm = problem.threat.norm
        tanh = state.w.tanh()
        x = _image_of(tanh)
        delta = x - rows.x
        distance = rownorm(delta, norm)
        excess = margin(answer.logits, rows.y)
        nearer = (excess > 0) & (distance < state.distance)
        reached = self._reached(answer.logits, rows.y, state.target) if self.targets else excess
        success = (reached > 0) & (reached >= self.confidence)

        towards = 2 * delta if norm == "L2" else delta.sign() * (delta.abs() > spread(state.threshold, delta))
        # The gradient of distance + c * f with respect to x, times the derivative of the tanh.
        grad = (towards - spread(state.c, x) * answer.grad).mul_(1 - tanh.square_()).div_(2)
        inner = state.inner + 1
        first = torch.lerp(grad, state.first, _FIRST)
        second = torch.lerp(grad.square(), state.second, _SECOND)
        size = (second / spread(1 - _SECOND**inner, second)).sqrt_().add_(_TINY)
        # In Linf steps must be smaller than the threshold, or they would jump over the allowed perturbations.
        step_size = spread((_FINER * state.threshold).clamp_max(self.step_size), first)
        going = CWState(
            w=state.w - (step_size * first).div_(spread(1 - _FIRST**inner, first)).div_(size),
            first=first,
            second=second,
            inner=inner,
            c=state.c,
            low=state.low,
            high=state.high,
            threshold=state.threshold,
            succeeded=state.succeeded | success,
            best=where(nearer, x, state.best),
            distance=torch.where(nearer, distance, state.distance),
            target=state.target,
            step=state.step + 1,
        )
        over = inner >= self.steps
        if norm == "L2":
            return _next_c(over, going, rows)
        return _next_threshold(over, success & (distance <= state.threshold), distance, going)

    def finished(self, state: CWState) -> Tensor:
        return state.step >= self.steps * self.rounds


def _next_c(over: Tensor, state: CWState, rows: Rows) -> CWState:
    """Where a round is over, restart from the clean image with c bisected, or tenfold if no c has succeeded."""
    if not occurs(over):
        return state
    high = torch.where(state.succeeded, torch.minimum(state.high, state.c), state.high)
    low = torch.where(state.succeeded, state.low, torch.maximum(state.low, state.c))
    c = torch.where(high < _NO_BOUND, (low + high) / 2, 10 * state.c)
    fresh = _restarted(state, w=_free(rows.x), c=c, low=low, high=high)
    return select(over, fresh, state)


def _next_threshold(over: Tensor, inside: Tensor, distance: Tensor, state: CWState) -> CWState:
    """Lower the threshold below an adversarial example that respects it; double c if a round found none.

    Both continue from the current point.
    """
    over = over | inside
    if not occurs(over):
        return state
    threshold = torch.where(inside, _SHRINK * distance, state.threshold)
    c = torch.where(inside, state.c, 2 * state.c)
    return select(over, _restarted(state, threshold=threshold, c=c), state)


def _restarted(state: CWState, **changed: Tensor) -> CWState:
    """The state at the start of a round."""
    values = {f.name: getattr(state, f.name) for f in fields(state)} | changed
    for name in ("first", "second", "inner", "succeeded"):
        values[name] = torch.zeros_like(values[name])
    return CWState(**values)


def _free(x: Tensor) -> Tensor:
    """The free variables whose image is (almost) `x`."""
    return torch.atanh((2 * x - 1) * _INSIDE)


def _image(w: Tensor) -> Tensor:
    """The image of free variables, in [0, 1]."""
    return _image_of(w.tanh())


def _image_of(tanh: Tensor) -> Tensor:
    return (tanh + 1).div_(2).clamp_(0, 1)

"""Towards evaluating the robustness of neural networks.

Carlini & Wagner 2016, arXiv 1608.04644: the least perturbation by Adam on a distance plus c times a margin,
in L2 over the tanh of free variables with a search for c (section VI.A), in Linf with a penalty on what
exceeds a shrinking threshold (section VI.C).
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
    select,
    spread,
    where,
)
from robench.attacks._losses import margin
from robench.core.errors import UsageError
from robench.core.registry import attacks
from robench.threats.threat import rownorm

# Adam, as in its paper.
_FIRST, _SECOND, _TINY = 0.9, 0.999, 1e-8
# Keeps the free variables finite where a pixel is 0 or 1.
_INSIDE = 0.999999
_NO_BOUND = 1e10
_SHRINK = 0.9
_FINER = 0.2


@dataclass(frozen=True)
class CWState(State):
    """Where each lane stands.

    `w` holds the free variables, `first` and `second` Adam's moments, `inner` its steps; `c` weighs the
    margin and is searched between `low` and `high`; `threshold` is Linf's; `found` says whether this round
    has met an adversarial point, `step` counts questions.
    """

    w: Tensor
    first: Tensor
    second: Tensor
    inner: Tensor
    c: Tensor
    low: Tensor
    high: Tensor
    threshold: Tensor
    found: Tensor
    best: Tensor
    distance: Tensor
    target: Tensor
    step: Tensor


@attacks.register("cw")
@dataclass(frozen=True)
class CW(Attack[CWState]):
    """Carlini & Wagner's attack in L2 and Linf: a minimum-norm attack, which does not know of the radius.

    Args:
        steps: of Adam for each value of c.
        rounds: values of c tried; in Linf, where a success ends a round early, rounds * steps questions.
        targets: 0 for the untargeted margin, else how many classes are aimed at, the most likely first.
        eot: draws of a randomised surrogate averaged for each gradient.
        c: first weight of the margin.
        step_size: of Adam, in the free variables; in Linf at most a fifth of the threshold.
        confidence: the margin aimed at, the paper's kappa.
        minimise: play on to the nearest image when one within the threat has been found.
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
            found=count > 0,
            best=rows.x,
            distance=zero + math.inf,
            target=self.target(rows) if self.targets else rows.y,
            step=count,
        )

    def ask(self, problem: Problem, rows: Rows, state: CWState) -> Ask:
        def reached(logits: Tensor, rows: Rows) -> Tensor:
            return self._reached(logits, rows, state).clamp_max(self.confidence)

        return Ask(_image(state.w), reached)

    def _reached(self, logits: Tensor, rows: Rows, state: CWState) -> Tensor:
        """Minus the paper's f6 without its floor, (S,): above 0 where the aim is reached."""
        return -margin(logits, state.target) if self.targets else margin(logits, rows.y)

    def tell(self, problem: Problem, rows: Rows, state: CWState, answer: Answer) -> CWState:
        norm = problem.threat.norm
        tanh = state.w.tanh()
        x = _image(state.w)
        delta = x - rows.x
        distance = rownorm(delta, norm)
        nearer = (margin(answer.logits, rows.y) > 0) & (distance < state.distance)
        reached = self._reached(answer.logits, rows, state)
        success = (reached > 0) & (reached >= self.confidence)

        beyond = delta.abs() > spread(state.threshold, delta)
        towards = 2 * delta if norm == "L2" else delta.sign() * beyond
        # The gradient in x of distance + c * f, and through the tanh.
        grad = (towards - spread(state.c, x) * answer.grad) * (1 - tanh.square()) / 2
        inner = state.inner + 1
        first = torch.lerp(grad, state.first, _FIRST)
        second = torch.lerp(grad.square(), state.second, _SECOND)
        size = (second / spread(1 - _SECOND**inner, second)).sqrt() + _TINY
        # In Linf steps stay finer than the threshold, or they would jump over the perturbations it allows.
        step_size = spread((_FINER * state.threshold).clamp_max(self.step_size), first)
        going = CWState(
            w=state.w - step_size * first / spread(1 - _FIRST**inner, first) / size,
            first=first,
            second=second,
            inner=inner,
            c=state.c,
            low=state.low,
            high=state.high,
            threshold=state.threshold,
            found=state.found | success,
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
    """Where a round is over, start again from the clean image: c bisected, or tenfold while none sufficed."""
    if not bool(over.any()):
        return state
    high = torch.where(state.found, torch.minimum(state.high, state.c), state.high)
    low = torch.where(state.found, state.low, torch.maximum(state.low, state.c))
    c = torch.where(high < _NO_BOUND, (low + high) / 2, 10 * state.c)
    fresh = _restarted(state, w=_free(rows.x), c=c, low=low, high=high)
    return select(over, fresh, state)


def _next_threshold(over: Tensor, inside: Tensor, distance: Tensor, state: CWState) -> CWState:
    """Lower the threshold beneath an adversarial point that respects it; double c where a round met none.

    Both go on from where they stand.
    """
    over = over | inside
    if not bool(over.any()):
        return state
    threshold = torch.where(inside, _SHRINK * distance, state.threshold)
    c = torch.where(inside, state.c, 2 * state.c)
    return select(over, _restarted(state, threshold=threshold, c=c), state)


def _restarted(state: CWState, **changed: Tensor) -> CWState:
    """The state at the start of a round."""
    values = {f.name: getattr(state, f.name) for f in fields(state)} | changed
    for name in ("first", "second", "inner", "found"):
        values[name] = torch.zeros_like(values[name])
    return CWState(**values)


def _free(x: Tensor) -> Tensor:
    """The variables whose image is (almost) `x`."""
    return torch.atanh((2 * x - 1) * _INSIDE)


def _image(w: Tensor) -> Tensor:
    """The image, in [0, 1] whatever the variables are."""
    return ((w.tanh() + 1) / 2).clamp(0, 1)

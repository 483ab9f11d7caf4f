"""Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks.

Croce & Hein 2020, arXiv 2003.01690: Auto-PGD, PGD with momentum and an adaptive step size (Alg. 1).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks._base import (
    Answer,
    Ask,
    GradientAttack,
    Problem,
    Rows,
    State,
    check_share,
    occurs,
    spread,
    where,
)
from robench.attacks._losses import ball, check_loss, into_l2_ball, normalize, objective, random_start
from robench.core.registry import attacks

_MOMENTUM = 0.75


@dataclass(frozen=True)
class APGDState(State):
    """The state of each lane; `x` is the next query, `since` counts the steps since the last checkpoint."""

    x: Tensor
    previous: Tensor
    low: Tensor
    high: Tensor
    best: Tensor
    best_grad: Tensor
    best_loss: Tensor
    last_loss: Tensor
    best_at_check: Tensor
    step_size: Tensor
    rises: Tensor
    since: Tensor
    period: Tensor
    halved: Tensor
    step: Tensor
    target: Tensor


@attacks.register("apgd")
@dataclass(frozen=True)
class APGD(GradientAttack[APGDState]):
    """Auto-PGD in Linf and L2.

    Args:
        rho: a checkpoint halves the step size if fewer than this fraction of steps increased the loss.
    """

    ascends: ClassVar[bool] = True

    rho: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("rho", self.rho)
        check_loss(self.loss)

    @property
    def norms(self) -> tuple[str, ...]:
        return ("Linf", "L2")

    def init(self, problem: Problem, rows: Rows) -> APGDState:
        threat, n = problem.threat, len(rows.x)
        x = random_start(rows, problem, threat.norm)
        low, high = ball(rows, threat.eps)
        zero = torch.zeros(n, device=x.device)
        count = torch.zeros(n, dtype=torch.int64, device=x.device)
        return APGDState(
            x=x,
            previous=x,
            low=low,
            high=high,
            best=x,
            best_grad=torch.zeros_like(x),
            best_loss=zero,
            last_loss=zero,
            best_at_check=zero,
            step_size=zero + 2 * threat.eps,
            rises=count,
            since=count,
            period=count + max(int(0.22 * self.steps), 1),
            halved=count > -1,
            step=count,
            target=self.target(rows) if self.targets else rows.y,
        )

    def ask(self, problem: Problem, rows: Rows, state: APGDState) -> Ask:
        return Ask(state.x, objective(self.loss, state.target if self.targets else None))

    def tell(self, problem: Problem, rows: Rows, state: APGDState, answer: Answer) -> APGDState:
        first = state.step == 0
        rose, better = answer.loss > state.last_loss, answer.loss > state.best_loss
        best_at_check = state.best_at_check
        later: Tensor | int = 1
        share: Tensor | float = _MOMENTUM
        if occurs(first):
            later = ~first
            rose, better = rose & later, better | first
            best_at_check = torch.where(first, answer.loss, best_at_check)
            share = spread(torch.where(first, 1.0, _MOMENTUM), state.x)
        best = where(better, state.x, state.best)
        best_grad = where(better, answer.grad, state.best_grad)
        best_loss = torch.where(better, answer.loss, state.best_loss)
        rises, since = state.rises + rose, state.since + later
        x, grad, step_size = state.x, answer.grad, state.step_size
        period, halved = state.period, state.halved

        # A checkpoint halves the step size if the loss rose too rarely, or if the last checkpoint did not halve it
        # and the best loss has not improved since (Conditions 1 and 2). Such lanes restart from their best point.
        check = since == period
        if occurs(check):
            stalled = ~halved & (best_at_check >= best_loss)
            halve = check & ((rises <= self.rho * period) | stalled)
            x, grad = where(halve, best, x), where(halve, best_grad, grad)
            step_size = torch.where(halve, step_size / 2, step_size)
            best_at_check = torch.where(check, best_loss, best_at_check)
            shorter = (period - max(int(0.03 * self.steps), 1)).clamp_min(max(int(0.06 * self.steps), 1))
            period, halved = torch.where(check, shorter, period), torch.where(check, halve, halved)
            rises, since = torch.where(check, 0, rises), torch.where(check, 0, since)

        return APGDState(
            x=self._move(problem, rows, state, x, grad, step_size, share),
            previous=x,
            low=state.low,
            high=state.high,
            best=best,
            best_grad=best_grad,
            best_loss=best_loss,
            last_loss=answer.loss,
            best_at_check=best_at_check,
            step_size=step_size,
            rises=rises,
            since=since,
            period=period,
            halved=halved,
            step=state.step + 1,
            target=state.target,
        )

    def _move(
        self,
        problem: Problem,
        rows: Rows,
        state: APGDState,
        x: Tensor,
        grad: Tensor,
        step_size: Tensor,
        share: Tensor | float,
    ) -> Tensor:
        """One projected step along the gradient, with momentum: a share of the step (Alg. 1, lines 7 and 8)."""
        threat = problem.threat

        def project(z: Tensor) -> Tensor:
            if threat.norm == "Linf":
                return z.clamp_(state.low, state.high)
            return into_l2_ball(z, rows, threat.eps)

        # Two buffers, written over and over, stay in the cache.
        z = normalize(grad, threat.norm)
        z = project(torch.addcmul(x, step_size.view(-1, 1, 1, 1), z, out=z))
        return project((x - state.previous).lerp_(z.sub_(x), share).add_(x))

    def finished(self, state: APGDState) -> Tensor:
        return state.step > self.steps

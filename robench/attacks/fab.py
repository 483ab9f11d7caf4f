"""Minimally distorted adversarial examples with a fast adaptive boundary attack.

Croce & Hein 2019, arXiv 1907.02044: FAB steps to the boundary of the linearized classifier, biased towards the clean
image, and moves back towards the clean image whenever the point is adversarial (Alg. 1).
"""

import math
from dataclasses import dataclass, replace
from functools import partial
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
    check_share,
    lanes_of,
    occurs,
    spread,
    where,
    write,
)
from robench.attacks._losses import _START, margin, objective
from robench.attacks._objective_types import Cheapest
from robench.attacks._projections import project_hyperplane
from robench.core.registry import attacks
from robench.threats.threat import rownorm

_DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}


@dataclass(frozen=True)
class FABState(State):
    """The state of each lane.

    `x` is the next query. A lane with `probes` only needs logits, because it expects the point to be adversarial like
    the previous one (`expects`), and the gradient there is not used. `settled` says that the gradient is used
    regardless of the class, which is known or irrelevant. `step` counts projections, plus one for the last answer.
    """

    x: Tensor
    probes: Tensor
    expects: Tensor
    settled: Tensor
    best: Tensor
    distance: Tensor
    target: Tensor
    step: Tensor


@attacks.register("fab")
@dataclass(frozen=True)
class FAB(Attack[FABState]):
    """FAB in Linf, L2 and L1: a minimum-norm attack that uses the radius for random starts only.

    A step takes one forward and one backward pass while points are not adversarial, because the same answer provides
    the gradient of the next step. It takes one more forward pass if the point is adversarial, which is expected when
    the previous one was.

    Args:
        steps: number of projections, with one or two queries each.
        targets: number of target classes, most likely first; 0 for the nearest of all linearized boundaries, with K
            gradients in each step.
        restarts: number of starts, for each target if targeted: the clean image, then random points at half the radius.
        eot: draws of a randomized surrogate averaged for each answer.
        alpha_max: largest weight of the projection of the clean image.
        eta: extrapolation factor of each projection.
        beta: fraction of the perturbation kept by a step back.
        minimise: continue after success to find the nearest adversarial example.
    """

    minimum_norm: ClassVar[bool] = True
    # A step takes one or two queries.
    cost_varies: ClassVar[int] = 2

    steps: int = 100
    targets: int = 0
    restarts: int = 1
    eot: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    minimise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("alpha_max", self.alpha_max)
        check_share("beta", self.beta)
        if self.eta <= 0:
            raise ValueError(f"eta={self.eta!r}: expected a number above 0")

    def init(self, problem: Problem, rows: Rows) -> FABState:
        count = torch.zeros_like(rows.y)
        first = rows.rank % self.restarts == 0
        start = rows.x if self.restarts == 1 else where(first, rows.x, _half_way(problem, rows))
        return FABState(
            x=start,
            probes=count > 0,
            expects=count > 0,
            settled=count == 0,
            best=rows.x,
            distance=torch.full_like(rows.x[:, 0, 0, 0], math.inf),
            target=self.target(rows) if self.targets else rows.y,
            step=count,
        )

    def ask(self, problem: Problem, rows: Rows, state: FABState) -> Ask:
        nearest = Cheapest(_differences, cost=partial(_distances, problem.threat.norm))
        return Ask(state.x, objective("margin", state.target) if self.targets else nearest)

    def probes(self, state: FABState) -> Tensor:
        return state.probes

    def tell(self, problem: Problem, rows: Rows, state: FABState, answer: Answer) -> FABState:
        norm, probing = problem.threat.norm, answer.grad.numel() == 0
        answered = state.probes == probing
        delta = state.x - rows.x
        distance = rownorm(delta, norm)
        adversarial = answered & (margin(answer.logits, rows.y) > 0)
        nearer = adversarial & (distance < state.distance)
        over = state.step >= self.steps
        # An adversarial candidate moves back, and its gradient is computed there.
        judged = answered & ~state.settled & ~over
        retreats = judged & adversarial
        steps = answered & ~over & ~retreats & (not probing)
        x = state.x
        if occurs(retreats):
            x = where(retreats, torch.add(rows.x, delta, alpha=self.beta), x)
        lanes = lanes_of(steps)
        if not probing and len(lanes):
            loss = answer.loss
            if answer.column is not None:
                loss = loss.gather(1, answer.column[:, None])[:, 0]
            values = rows.x, x, loss, answer.grad
            if len(lanes) < len(x):
                selected = (tensor.index_select(0, lanes) for tensor in values)
                x = write(x.clone(), lanes, self._step(norm, *selected))
            else:
                x = where(steps, self._step(norm, *values), x)
        expects = torch.where(judged, adversarial, state.expects)
        return replace(
            state,
            x=x,
            # After the last step only the class of the point is needed.
            probes=torch.where(answered, steps & (expects | (state.step + 1 >= self.steps)), state.probes),
            expects=expects,
            settled=torch.where(answered, ~steps, state.settled),
            best=where(nearer, state.x, state.best),
            distance=torch.where(nearer, distance, state.distance),
            step=state.step + (steps | (answered & over)).long(),
        )

    def _step(self, norm: str, clean: Tensor, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        """Eqs. 8 to 10: the convex combination of the projections of `x` and of `clean`, clipped."""
        n = len(x)
        if loss.dim() == 1:
            f, w = loss, grad.reshape(n, -1)
        else:
            f, w = _nearest(norm, loss, grad.reshape(n, loss.shape[1], -1))
        now, start = x.flatten(1), clean.flatten(1)
        # The plane is f + w·(z - x) = 0; the gap of the clean image follows from that of x.
        gap = torch.stack([-f, (now - start).mul_(w).sum(1) - f])
        d = project_hyperplane(torch.stack([now, start]), w, gap, norm)
        size = rownorm(d.flatten(0, 1), norm).clamp_min(1e-8).view(2, n)
        alpha = (size[0] / size.sum(0)).clamp_max(self.alpha_max)[:, None]
        onwards = torch.add(now, d[0], alpha=self.eta, out=d[0])
        back = torch.add(start, d[1], alpha=self.eta, out=d[1])
        return onwards.lerp_(back, alpha).clamp_(0, 1).view_as(x)

    def finished(self, state: FABState) -> Tensor:
        return state.step > self.steps


def _differences(logits: Tensor, y: Tensor) -> Tensor:
    """Every logit minus the logit of the label, (S, K)."""
    return logits - logits.gather(1, y[:, None])


def _nearest(norm: str, f: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The linearized boundary nearest to each point (eq. 7): its offset (S,) and normal (S, D).

    Args:
        f: logits minus the logit of the label, (S, K); the entry of the label is 0 without gradient.
        w: gradients of f, (S, K, D).
    """
    index = _distances(norm, f, w).argmin(1, keepdim=True)
    return f.gather(1, index)[:, 0], w.gather(1, index[:, :, None].expand(-1, -1, w.shape[2]))[:, 0]


def _distances(norm: str, f: Tensor, w: Tensor) -> Tensor:
    """The distance of each linearized boundary, (S, K), infinite without a gradient; arguments as of `_nearest`."""
    size = rownorm(w.flatten(0, 1), _DUAL[norm]).view_as(f)
    return torch.where(size > 0, f.abs() / size, math.inf).nan_to_num(nan=math.inf, posinf=math.inf)


def _half_way(problem: Problem, rows: Rows) -> Tensor:
    """A random point at half the radius, clipped to [0, 1]."""
    stream, threat, shape = problem.stream, problem.threat, tuple(rows.x.shape[1:])
    if threat.norm == "Linf":
        noise = 2 * stream.uniform(rows.sample, rows.rank, _START, shape) - 1
    else:
        noise = stream.normal(rows.sample, rows.rank, _START, shape)
    size = rownorm(noise, threat.norm).clamp_min(1e-12)
    return (rows.x + 0.5 * threat.eps * noise / spread(size, noise)).clamp(0, 1)

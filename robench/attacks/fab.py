"""Minimally distorted adversarial examples with a fast adaptive boundary attack.

Croce & Hein 2019, arXiv 1907.02044: FAB steps to the boundary of the linearised classifier, biased towards
the clean image, and walks back towards it whenever it stands on the wrong side (Alg. 1).
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, Attack, Problem, Rows, State, spread, where
from robench.attacks._losses import _START, margin, objective
from robench.attacks._projections import project_hyperplane
from robench.core.registry import attacks
from robench.threats.threat import rownorm

# A forward pass costs about a fourth of one with its gradient: so many lanes are worth a turn without.
_WORTH_A_TURN = 1 / 4
_PATIENCE = 3
_DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}


@dataclass(frozen=True)
class FABState(State):
    """Where each lane stands.

    `x` is the next point to ask for. A lane that probes asks for logits alone, because it expects the point
    on the wrong side, as the one before it was (`expects`), where its gradient is of no use; `settled` says
    that the gradient is used whatever the class, which is known or does not matter. `waited` counts the turns
    that went to lanes with the other kind of question, `step` projections, and one more for the last answer.
    """

    x: Tensor
    probes: Tensor
    expects: Tensor
    settled: Tensor
    waited: Tensor
    best: Tensor
    distance: Tensor
    target: Tensor
    step: Tensor


@attacks.register("fab")
@dataclass(frozen=True)
class FAB(Attack[FABState]):
    """FAB in Linf, L2 and L1: a minimum-norm attack, which knows of the radius only to start at random.

    One forward and one backward pass a step where the points stay harmless, for the answer that shows it
    holds the gradient of the next step; one more forward pass where a point is on the wrong side, as is
    expected of it when the one before it was.

    Args:
        steps: projections; one or two questions each.
        targets: 0 for the nearest of all linearised boundaries (K gradients a step), else how many classes
            are aimed at, the most likely first.
        restarts: starts (a target): the clean image first, then random ones at half the radius.
        eot: draws of a randomised surrogate averaged for each answer.
        alpha_max: largest weight of the projection of the clean image.
        eta: overshooting of each projection.
        beta: what remains of the perturbation after a step back.
        minimise: play on to the nearest image when one within the threat has been found.
    """

    minimum_norm: ClassVar[bool] = True
    # A step is one query or two.
    cost_varies: ClassVar[int] = 2

    steps: int = 100
    targets: int = 0
    restarts: int = 1
    eot: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    minimise: bool = False

    def init(self, problem: Problem, rows: Rows) -> FABState:
        count = torch.zeros_like(rows.y)
        first = rows.rank % self.restarts == 0
        start = rows.x if self.restarts == 1 else where(first, rows.x, _half_way(problem, rows))
        return FABState(
            x=start,
            probes=count > 0,
            expects=count > 0,
            settled=count == 0,
            waited=count,
            best=rows.x,
            distance=torch.full_like(rows.x[:, 0, 0, 0], math.inf),
            target=self.target(rows) if self.targets else rows.y,
            step=count,
        )

    def ask(self, problem: Problem, rows: Rows, state: FABState) -> Ask:
        # One kind of question a turn: probing lanes wait until they are enough to be worth one, or too long.
        probing = state.probes & rows.active
        enough = probing.sum() >= (_WORTH_A_TURN * rows.active.sum()).clamp_min(1)
        if bool(enough | (probing & (state.waited >= _PATIENCE)).any()):
            return Ask(state.x, waits=~state.probes)
        return Ask(state.x, objective("margin", state.target) if self.targets else _differences, state.probes)

    def tell(self, problem: Problem, rows: Rows, state: FABState, answer: Answer) -> FABState:
        norm, probing = problem.threat.norm, answer.grad.numel() == 0
        asked = state.probes == probing
        delta = state.x - rows.x
        distance = rownorm(delta, norm)
        adversarial = asked & (margin(answer.logits, rows.y) > 0)
        nearer = adversarial & (distance < state.distance)
        over = state.step >= self.steps
        # A candidate on the wrong side is moved back, and its gradient asked for there.
        judged = asked & ~state.settled & ~over
        retreats = judged & adversarial
        steps = asked & ~over & ~retreats & (not probing)
        x = state.x
        if bool(retreats.any()):
            x = where(retreats, torch.add(rows.x, delta, alpha=self.beta), x)
        if bool(steps.any()):
            lanes = steps.nonzero()[:, 0]
            taken = (each.index_select(0, lanes) for each in (rows.x, x, answer.loss, answer.grad))
            there = self._step(norm, *taken)
            x = x.index_copy(0, lanes, there)
        expects = torch.where(judged, adversarial, state.expects)
        return replace(
            state,
            x=x,
            # Of the point after the last step nothing but its class is wanted.
            probes=torch.where(asked, steps & (expects | (state.step + 1 >= self.steps)), state.probes),
            expects=expects,
            settled=torch.where(asked, ~steps, state.settled),
            waited=torch.where(asked, 0, state.waited + 1),
            best=where(nearer, state.x, state.best),
            distance=torch.where(nearer, distance, state.distance),
            step=state.step + (steps | (asked & over)).long(),
        )

    def _step(self, norm: str, clean: Tensor, x: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        """Eqs. 8 to 10: the convex combination of the projections of `x` and of `clean`, clipped."""
        n = len(x)
        if loss.dim() == 1:
            f, w = loss, grad.reshape(n, -1)
        else:
            f, w = _nearest(norm, loss, grad.reshape(n, loss.shape[1], -1))
        now, start = x.flatten(1), clean.flatten(1)
        # The plane is f + w·(z - x) = 0: what the clean image lacks follows from what x lacks.
        gap = torch.stack([-f, (w * (now - start)).sum(1) - f])
        d = project_hyperplane(torch.stack([now, start]), w, gap, norm)
        size = rownorm(d.flatten(0, 1), norm).clamp_min(1e-8).view(2, n)
        alpha = (size[0] / size.sum(0)).clamp_max(self.alpha_max)[:, None]
        onwards, back = torch.add(now, d[0], alpha=self.eta), torch.add(start, d[1], alpha=self.eta)
        return torch.lerp(onwards, back, alpha).clamp_(0, 1).view_as(x)

    def finished(self, state: FABState) -> Tensor:
        return state.step > self.steps


def _differences(logits: Tensor, rows: Rows) -> Tensor:
    """Every logit minus the label's, (S, K)."""
    return logits - logits.gather(1, rows.y[:, None])


def _nearest(norm: str, f: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The linearised boundary nearest to each point (eq. 7): its offset (S,) and normal (S, D).

    Args:
        f: differences of logits (S, K); the label's own, with itself, is 0 and has no gradient.
        w: their gradients (S, K, D).
    """
    size = rownorm(w.flatten(0, 1), _DUAL[norm]).view_as(f)
    distance = torch.where(size > 0, f.abs() / size, math.inf).nan_to_num(nan=math.inf, posinf=math.inf)
    index = distance.argmin(1, keepdim=True)
    return f.gather(1, index)[:, 0], w.gather(1, index[:, :, None].expand(-1, -1, w.shape[2]))[:, 0]


def _half_way(problem: Problem, rows: Rows) -> Tensor:
    """A random point at half the radius, clipped to [0, 1]."""
    stream, threat, shape = problem.stream, problem.threat, tuple(rows.x.shape[1:])
    if threat.norm == "Linf":
        noise = 2 * stream.uniform(rows.sample, rows.rank, _START, shape) - 1
    else:
        noise = stream.normal(rows.sample, rows.rank, _START, shape)
    size = rownorm(noise, threat.norm).clamp_min(1e-12)
    return (rows.x + 0.5 * threat.eps * noise / spread(size, noise)).clamp(0, 1)

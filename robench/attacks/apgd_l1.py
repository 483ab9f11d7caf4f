"""Mind the box: l1-APGD for sparse adversarial attacks on image classifiers.

Croce & Hein 2021, arXiv 2103.01208: Auto-PGD in the L1 ball intersected with [0, 1], with sparse steps whose
sparsity adapts (Alg. 1), run in three stages at 3, 2 and 1 times the radius.
"""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, GradientAttack, Problem, Rows, State, occurs, select, where
from robench.attacks._losses import _START, check_loss, objective
from robench.attacks._projections import project_l1_box
from robench.core.registry import attacks

_RADII = (3.0, 2.0, 1.0)
_SHARES = (0.3, 0.3)
_SHRINK, _SMALLEST, _SPARSER = 1.5, 10.0, 0.95


@dataclass(frozen=True)
class APGDL1State(State):
    """The state of each lane; `kept` is the fraction of coordinates that a step changes, `nonzero` the last count."""

    x: Tensor
    best: Tensor
    best_grad: Tensor
    best_loss: Tensor
    step_size: Tensor
    kept: Tensor
    nonzero: Tensor
    since: Tensor
    step: Tensor
    stage: Tensor
    target: Tensor


@attacks.register("apgd-l1")
@dataclass(frozen=True)
class APGDL1(GradientAttack[APGDL1State]):
    """Auto-PGD in L1.

    Args:
        steps: iterations over the three stages, with one forward and one backward pass each, and three more of both.
    """

    # Early stages use larger balls, so the loss drops when the radius shrinks.
    ascends: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss)
        if self.steps < len(_RADII):
            raise ValueError(f"steps={self.steps}: expected at least {len(_RADII)}, one for each stage")

    @property
    def norms(self) -> tuple[str, ...]:
        return ("L1",)

    @property
    def stages(self) -> tuple[int, ...]:
        """Number of iterations of each stage."""
        early = [math.ceil(share * self.steps) for share in _SHARES]
        return (*early, max(self.steps - sum(early), 1))

    def _of_stage(self, values: tuple[float, ...] | tuple[int, ...], stage: Tensor) -> Tensor:
        return _table(values, stage.device)[stage.clamp_max(len(values) - 1)]

    def init(self, problem: Problem, rows: Rows) -> APGDL1State:
        shape = tuple(rows.x.shape[1:])
        noise = problem.stream.normal(rows.sample, rows.rank, _START, shape)
        count = torch.zeros(len(rows.x), dtype=torch.int64, device=rows.x.device)
        x = rows.x + project_l1_box(rows.x, noise, _RADII[0] * problem.threat.eps)
        target = self.target(rows) if self.targets else rows.y
        return self._stage(problem, rows, x, count, target)

    def _stage(self, problem: Problem, rows: Rows, x: Tensor, stage: Tensor, target: Tensor) -> APGDL1State:
        """The state at the start of a stage, from a point inside its ball."""
        zero = torch.zeros(len(x), device=x.device)
        nonzero = _nonzero(x - rows.x)
        return APGDL1State(
            x=x,
            best=x,
            best_grad=torch.zeros_like(x),
            best_loss=zero,
            step_size=self._of_stage(_RADII, stage) * problem.threat.eps,
            kept=nonzero / rows.x[0].numel() / _SHRINK,
            nonzero=nonzero,
            since=torch.zeros_like(stage),
            step=torch.zeros_like(stage),
            stage=stage,
            target=target,
        )

    def ask(self, problem: Problem, rows: Rows, state: APGDL1State) -> Ask:
        return Ask(state.x, objective(self.loss, state.target if self.targets else None))

    def tell(self, problem: Problem, rows: Rows, state: APGDL1State, answer: Answer) -> APGDL1State:
        first = state.step == 0
        better = first | (answer.loss > state.best_loss)
        best = where(better, state.x, state.best)
        best_grad = where(better, answer.grad, state.best_grad)
        best_loss = torch.where(better, answer.loss, state.best_loss)
        since = state.since + (~first).long()

        # A checkpoint sets the sparsity to that of the best point. Where it dropped, the lane restarts from that point.
        radius = self._of_stage(_RADII, state.stage) * problem.threat.eps
        periods = tuple(max(int(0.04 * steps), 1) for steps in self.stages)
        check = since == self._of_stage(periods, state.stage)
        nonzero = _nonzero(best - rows.x)
        sparser = check & (nonzero / state.nonzero < _SPARSER)
        smaller = torch.maximum(state.step_size / _SHRINK, radius / _SMALLEST)
        step_size = torch.where(sparser, radius, torch.where(check, smaller, state.step_size))
        kept = torch.where(check, nonzero / rows.x[0].numel() / _SHRINK, state.kept)
        x, grad = where(sparser, best, state.x), where(sparser, best_grad, answer.grad)

        moved = x + step_size.view(-1, 1, 1, 1) * _sparse_sign(grad, kept)
        over, stage = state.step >= self._of_stage(self.stages, state.stage), state.stage + 1
        clean, delta, any_over = rows.x, moved - rows.x, occurs(over)
        if any_over:
            # The best points are projected onto the ball of the next stage in the same call.
            clean, delta = torch.cat([clean, clean]), torch.cat([delta, best - clean])
            radius = torch.cat([radius, self._of_stage(_RADII, stage) * problem.threat.eps])
        points = clean + project_l1_box(clean, delta, radius)
        going = APGDL1State(
            x=points[: len(x)],
            best=best,
            best_grad=best_grad,
            best_loss=best_loss,
            step_size=step_size,
            kept=kept,
            nonzero=torch.where(check, nonzero, state.nonzero),
            since=torch.where(check, 0, since),
            step=state.step + 1,
            stage=state.stage,
            target=state.target,
        )
        if not any_over:
            return going
        # After the last stage the state keeps its best point.
        last = stage == len(_RADII)
        fresh = self._stage(problem, rows, where(last, best, points[len(x) :]), stage, state.target)
        return select(over, fresh, going)

    def finished(self, state: APGDL1State) -> Tensor:
        return state.stage == len(_RADII)


@functools.lru_cache(maxsize=64)
def _table(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)


def _nonzero(delta: Tensor) -> Tensor:
    """The number of nonzero coordinates of each row, float32 (S,)."""
    return (delta != 0).flatten(1).sum(1).float()


def _sparse_sign(grad: Tensor, fraction: Tensor) -> Tensor:
    """The signs of the largest gradient coordinates, a fraction `fraction` of each row, divided by their number."""
    flat = grad.flatten(1)
    size = flat.abs()
    count = size.shape[1]
    index = ((1 - fraction) * count).long().clamp(0, count - 1)
    threshold = size.sort(dim=1).values.gather(1, index[:, None])
    signs = flat.sign() * (size >= threshold)
    return (signs / (signs.abs().sum(1, keepdim=True) + 1e-10)).view_as(grad)

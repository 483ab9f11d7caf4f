"""HopSkipJumpAttack: a query-efficient decision-based attack (Chen et al. 2019, arXiv 1904.02144).

The attack uses decisions only (Alg. 2): a binary search finds a boundary point, random points around it estimate the
gradient there (eqs. 9 and 16), and the step along the gradient is halved until the image fools.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, Attack, Problem, Rows, State, check_count, spread, where
from robench.attacks._losses import margin, normalize
from robench.core.registry import attacks
from robench.threats.threat import rownorm

# Phases of a lane: find an initial adversarial example, search for the boundary, estimate the gradient, step.
_INITIALIZE, _BINARY_SEARCH, _ESTIMATE, _STEP = range(4)
# Initial random images consist of tiles of one color; their sides in pixels, used in turn.
_TILES = (1, 2, 4, 8)
# Radius of the first gradient estimate, before the distance is known, and the maximum number of points of an estimate.
_FIRST_REACH, _MOST = 0.1, 10_000
# A step is given up after this many halvings.
_HALVINGS = 30


@dataclass(frozen=True)
class HopSkipJumpState(State):
    """The state of each lane.

    `far` is adversarial. The boundary lies between the fractions `low` (not adversarial) and `high` (adversarial) of
    the way to it; `boundary` is the boundary point. `answers` counts those in the current phase. For a gradient
    estimate, `fooling` sums the signs, `away` the directions, and `signed` the directions times their signs;
    `step_size` is the step tried along the estimate `normal`. `round` counts estimates and `step` queries.
    """

    phase: Tensor
    far: Tensor
    low: Tensor
    high: Tensor
    boundary: Tensor
    fooling: Tensor
    away: Tensor
    signed: Tensor
    normal: Tensor
    step_size: Tensor
    answers: Tensor
    round: Tensor
    best: Tensor
    distance: Tensor
    step: Tensor


@attacks.register("hopskipjump")
@dataclass(frozen=True)
class HopSkipJump(Attack[HopSkipJumpState]):
    """HopSkipJump in Linf and L2: a minimum-norm attack that uses decisions only.

    It starts from random images until one fools, alternating between single pixels and coarser tiles; the paper uses
    single pixels only.

    Args:
        queries: maximum number of forward passes.
        samples: number of points of the first gradient estimate, the paper's B_0; it grows with the square root of the
            number of the estimate.
        minimise: continue after success to find the nearest adversarial example.
    """

    minimum_norm: ClassVar[bool] = True
    gradient_free: ClassVar[bool] = True
    in_pixels: ClassVar[bool] = True

    queries: int = 5000
    samples: int = 100
    minimise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("queries", self.queries)
        check_count("samples", self.samples)

    @property
    def norms(self) -> tuple[str, ...]:
        return ("Linf", "L2")

    @property
    def num_queries(self) -> int:
        return self.queries

    def init(self, problem: Problem, rows: Rows) -> HopSkipJumpState:
        count, zero = torch.zeros_like(rows.y), torch.zeros_like(rows.x[:, 0, 0, 0])
        image = torch.zeros_like(rows.x)
        return HopSkipJumpState(
            phase=count + _INITIALIZE,
            far=rows.x,
            low=zero,
            high=zero,
            boundary=rows.x,
            fooling=zero,
            away=image,
            signed=image,
            normal=image,
            step_size=zero,
            answers=count,
            round=count,
            best=rows.x,
            distance=zero + math.inf,
            step=count,
        )

    def ask(self, problem: Problem, rows: Rows, state: HopSkipJumpState) -> Ask:
        norm = problem.threat.norm
        x = _between(rows.x, state.far, (state.low + state.high) / 2, norm)
        stepped = torch.addcmul(state.boundary, spread(state.step_size, x), state.normal)
        x = where(state.phase == _STEP, stepped, x)
        for phase, draw in ((_INITIALIZE, self._random_image), (_ESTIMATE, self._around)):
            lanes = (state.phase == phase).nonzero()[:, 0]
            if len(lanes):
                x = x.index_copy(0, lanes, draw(problem, rows, state, lanes))
        return Ask(x.clamp(0, 1))

    def _random_image(self, problem: Problem, rows: Rows, state: HopSkipJumpState, lanes: Tensor) -> Tensor:
        """Draw a random image for each of the lanes."""
        shape = rows.x.shape[1:]
        noise = problem.stream.uniform(rows.sample[lanes], rows.rank[lanes], state.step[lanes], tuple(shape))
        tile = torch.tensor(_TILES, device=lanes.device)[state.step[lanes] % len(_TILES)][:, None]
        row, column = (torch.arange(side, device=lanes.device) // tile * tile for side in shape[1:])
        noise = noise.gather(2, row[:, None, :, None].expand_as(noise))
        return noise.gather(3, column[:, None, None, :].expand_as(noise))

    def _around(self, problem: Problem, rows: Rows, state: HopSkipJumpState, lanes: Tensor) -> Tensor:
        """Draw a random point around the boundary point of each of the lanes."""
        stream, norm = problem.stream, problem.threat.norm
        key = (rows.sample[lanes], rows.rank[lanes], state.step[lanes], tuple(rows.x.shape[1:]))
        noise = 2 * stream.uniform(*key) - 1 if norm == "Linf" else stream.normal(*key)
        reach = _reach(rows.x, state, norm)[lanes]
        return state.boundary[lanes] + spread(reach, noise) * normalize(noise, "L2")

    def tell(self, problem: Problem, rows: Rows, state: HopSkipJumpState, answer: Answer) -> HopSkipJumpState:
        norm = problem.threat.norm
        fools = margin(answer.logits, rows.y) > 0
        distance = rownorm(answer.x - rows.x, norm)
        nearer = fools & (distance < state.distance)
        state = replace(
            state,
            best=where(nearer, answer.x, state.best),
            distance=torch.where(nearer, distance, state.distance),
            answers=state.answers + 1,
            step=state.step + 1,
        )
        # Each lane is in one phase; a new phase applies to its next query.
        before = state.phase
        for phase, update in (
            (_INITIALIZE, _initialized),
            (_BINARY_SEARCH, _halved),
            (_ESTIMATE, self._estimated),
            (_STEP, _stepped),
        ):
            lanes = before == phase
            if bool(lanes.any()):
                state = update(rows, state, answer.x, fools, lanes, norm)
        return state

    def _estimated(
        self, rows: Rows, state: HopSkipJumpState, x: Tensor, fools: Tensor, lanes: Tensor, norm: str
    ) -> HopSkipJumpState:
        """Add a point to the estimate; after the last one compute the gradient (eq. 16) and the first step along it."""
        reach = _reach(rows.x, state, norm).clamp_min(1e-12)
        step = (x - state.boundary) / spread(reach, x)
        sign = torch.where(fools, 1.0, -1.0)
        fooling = torch.where(lanes, state.fooling + sign, state.fooling)
        away = where(lanes, state.away + step, state.away)
        signed = where(lanes, state.signed + spread(sign, x) * step, state.signed)
        samples = (self.samples * state.round.float().sqrt()).long().clamp_max(_MOST)
        over = lanes & (state.answers >= samples)
        mean = fooling / state.answers.clamp_min(1)
        # If all points agree there is no baseline: only the sign of the mean is known.
        baseline = torch.where(mean.abs() < 1, mean, 0)
        normal = normalize(signed - spread(baseline, x) * away, norm)
        step_size = rownorm(state.boundary - rows.x, norm) / state.round.clamp_min(1).float().sqrt()
        return replace(
            state,
            phase=torch.where(over, _STEP, state.phase),
            fooling=torch.where(over, 0, fooling),
            away=where(over, torch.zeros_like(away), away),
            signed=where(over, torch.zeros_like(signed), signed),
            normal=where(over, normal, state.normal),
            step_size=torch.where(over, step_size, state.step_size),
            answers=torch.where(over, 0, state.answers),
        )

    def finished(self, state: HopSkipJumpState) -> Tensor:
        return state.step >= self.queries


def _initialized(
    rows: Rows, state: HopSkipJumpState, x: Tensor, fools: Tensor, lanes: Tensor, norm: str
) -> HopSkipJumpState:
    """Start the binary search from the first image that fools."""
    return _to_boundary(rows, state, x, lanes & fools, norm)


def _halved(
    rows: Rows, state: HopSkipJumpState, x: Tensor, fools: Tensor, lanes: Tensor, norm: str
) -> HopSkipJumpState:
    """One step of the binary search; once below the paper's threshold, the gradient is estimated next."""
    middle = (state.low + state.high) / 2
    high = torch.where(lanes & fools, middle, state.high)
    low = torch.where(lanes & ~fools, middle, state.low)
    # In Linf the position is a distance, in L2 a fraction of the distance.
    unit = high.clamp_max(1.0) if norm == "Linf" else torch.ones_like(high)
    between = (low + high) / 2
    over = lanes & ((high - low <= unit * _threshold(rows.x, norm)) | (between <= low) | (between >= high))
    boundary = _between(rows.x, state.far, high, norm)
    return replace(
        state,
        low=low,
        high=high,
        boundary=where(over, boundary, state.boundary),
        phase=torch.where(over, _ESTIMATE, state.phase),
        answers=torch.where(over, 0, state.answers),
        round=state.round + over,
    )


def _stepped(
    rows: Rows, state: HopSkipJumpState, x: Tensor, fools: Tensor, lanes: Tensor, norm: str
) -> HopSkipJumpState:
    """After a step that fools, start a binary search from there; otherwise halve the step, and finally give up."""
    success = lanes & fools
    halved = replace(state, step_size=torch.where(lanes & ~fools, state.step_size / 2, state.step_size))
    stuck = lanes & ~fools & (state.answers >= _HALVINGS)
    # If no step fools, the next estimate at the same boundary point uses more points.
    halved = replace(
        halved,
        phase=torch.where(stuck, _ESTIMATE, halved.phase),
        answers=torch.where(stuck, 0, halved.answers),
        round=halved.round + stuck,
    )
    return _to_boundary(rows, halved, x, success, norm)


def _to_boundary(
    rows: Rows, state: HopSkipJumpState, far: Tensor, lanes: Tensor, norm: str
) -> HopSkipJumpState:
    """Start a binary search between the clean image and `far` in `lanes`."""
    whole = rownorm(far - rows.x, "Linf") if norm == "Linf" else torch.ones_like(state.high)
    return replace(
        state,
        far=where(lanes, far, state.far),
        low=torch.where(lanes, 0, state.low),
        high=torch.where(lanes, whole, state.high),
        phase=torch.where(lanes, _BINARY_SEARCH, state.phase),
        answers=torch.where(lanes, 0, state.answers),
    )


def _between(x: Tensor, far: Tensor, way: Tensor, norm: str) -> Tensor:
    """`far` clipped to distance `way` (S,) from the image in Linf, or the point at fraction `way` of the path in L2."""
    delta = far - x
    limit = spread(way, delta)
    return x + (delta.clamp(-limit, limit) if norm == "Linf" else limit * delta)


def _threshold(x: Tensor, norm: str) -> float:
    """Tolerance of the binary search: d^-2 in Linf, d^-3/2 in L2, for d pixels (section IV.C)."""
    size = math.prod(x.shape[1:])
    return float(size) ** (-2 if norm == "Linf" else -1.5)


def _reach(x: Tensor, state: HopSkipJumpState, norm: str) -> Tensor:
    """The radius of the gradient estimate, (S,): the distance of the boundary point divided by d."""
    size = math.prod(x.shape[1:])
    return torch.where(state.round <= 1, _FIRST_REACH, rownorm(state.boundary - x, norm) / size)

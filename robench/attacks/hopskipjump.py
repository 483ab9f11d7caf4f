"""HopSkipJumpAttack: a query-efficient decision-based attack (Chen et al. 2019, arXiv 1904.02144).

It sees decisions only (Alg. 2): a binary search finds a boundary point, random points around it give an estimate of the
gradient there (eqs. 9 and 16), and a step along it is halved until the image fools.
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

# What a lane does next: look for an image that fools, search for a boundary point, estimate the gradient, step.
_INITIALIZE, _BINARY_SEARCH, _ESTIMATE, _STEP = range(4)
# Tiles of these many pixels a side are of one colour in the random images that the search starts with, in turn.
_TILES = (1, 2, 4, 8)
# Radius of the first gradient estimate, before the distance is known; and the most points of any estimate.
_FIRST_REACH, _MOST = 0.1, 10_000
# A step that was halved this often is given up.
_HALVINGS = 30


@dataclass(frozen=True)
class HopSkipJumpState(State):
    """Where each lane stands.

    `far` fools, and the boundary is sought between `low` (does not fool) and `high` (fools) of the way to it;
    `boundary` is the boundary point. `told` counts the answers of a phase. Over the points of a gradient estimate,
    `fooling` sums the signs, `away` the directions, and `signed` the directions times their signs; `step_size` is the
    step tried along the estimate `normal`. `round` counts the estimates, `step` the queries.
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
    told: Tensor
    round: Tensor
    best: Tensor
    distance: Tensor
    step: Tensor


@attacks.register("hopskipjump")
@dataclass(frozen=True)
class HopSkipJump(Attack[HopSkipJumpState]):
    """HopSkipJump in Linf and L2: a minimum-norm attack that sees decisions only.

    It starts from random images, of single pixels and of coarser tiles in turn, until one fools; the paper takes
    single pixels only.

    Args:
        queries: forward passes, never more.
        samples: points of the first gradient estimate, the paper's B_0; later ones take more, by the root of their
            number.
        minimise: play on to the nearest image when one within the threat has been found.
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
            told=count,
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
        for phase, drawn in ((_INITIALIZE, self._random_image), (_ESTIMATE, self._around)):
            lanes = (state.phase == phase).nonzero()[:, 0]
            if len(lanes):
                x = x.index_copy(0, lanes, drawn(problem, rows, state, lanes))
        return Ask(x.clamp(0, 1))

    def _random_image(self, problem: Problem, rows: Rows, state: HopSkipJumpState, lanes: Tensor) -> Tensor:
        """A random image for each of the lanes."""
        shape = rows.x.shape[1:]
        noise = problem.stream.uniform(rows.sample[lanes], rows.rank[lanes], state.step[lanes], tuple(shape))
        tile = torch.tensor(_TILES, device=lanes.device)[state.step[lanes] % len(_TILES)][:, None]
        row, column = (torch.arange(side, device=lanes.device) // tile * tile for side in shape[1:])
        noise = noise.gather(2, row[:, None, :, None].expand_as(noise))
        return noise.gather(3, column[:, None, None, :].expand_as(noise))

    def _around(self, problem: Problem, rows: Rows, state: HopSkipJumpState, lanes: Tensor) -> Tensor:
        """A random point around the boundary point of each of the lanes."""
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
            told=state.told + 1,
            step=state.step + 1,
        )
        # Each lane is in one phase, and what it enters is for its next question.
        before = state.phase
        for phase, told in (
            (_INITIALIZE, _sought),
            (_BINARY_SEARCH, _halved),
            (_ESTIMATE, self._estimated),
            (_STEP, _stepped),
        ):
            lanes = before == phase
            if bool(lanes.any()):
                state = told(rows, state, answer.x, fools, lanes, norm)
        return state

    def _estimated(
        self, rows: Rows, state: HopSkipJumpState, x: Tensor, fools: Tensor, lanes: Tensor, norm: str
    ) -> HopSkipJumpState:
        """One more point of the estimate; after the last one the gradient (eq. 16), and the first step along it."""
        reach = _reach(rows.x, state, norm).clamp_min(1e-12)
        step = (x - state.boundary) / spread(reach, x)
        sign = torch.where(fools, 1.0, -1.0)
        fooling = torch.where(lanes, state.fooling + sign, state.fooling)
        away = where(lanes, state.away + step, state.away)
        signed = where(lanes, state.signed + spread(sign, x) * step, state.signed)
        wanted = (self.samples * state.round.float().sqrt()).long().clamp_max(_MOST)
        over = lanes & (state.told >= wanted)
        mean = fooling / state.told.clamp_min(1)
        # Where all points agree the mean says nothing but its sign.
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
            told=torch.where(over, 0, state.told),
        )

    def finished(self, state: HopSkipJumpState) -> Tensor:
        return state.step >= self.queries


def _sought(
    rows: Rows, state: HopSkipJumpState, x: Tensor, fools: Tensor, lanes: Tensor, norm: str
) -> HopSkipJumpState:
    """The first image that fools is where the search begins."""
    return _to_boundary(rows, state, x, lanes & fools, norm)


def _halved(
    rows: Rows, state: HopSkipJumpState, x: Tensor, fools: Tensor, lanes: Tensor, norm: str
) -> HopSkipJumpState:
    """One step of the binary search; below the paper's threshold the gradient is estimated next."""
    middle = (state.low + state.high) / 2
    high = torch.where(lanes & fools, middle, state.high)
    low = torch.where(lanes & ~fools, middle, state.low)
    # In Linf the way is a distance, in L2 a share of one.
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
        told=torch.where(over, 0, state.told),
        round=state.round + over,
    )


def _stepped(
    rows: Rows, state: HopSkipJumpState, x: Tensor, fools: Tensor, lanes: Tensor, norm: str
) -> HopSkipJumpState:
    """Where the step fools, the binary search starts from there; elsewhere it is halved, and given up in the end."""
    landed = lanes & fools
    halved = replace(state, step_size=torch.where(lanes & ~fools, state.step_size / 2, state.step_size))
    stuck = lanes & ~fools & (state.told >= _HALVINGS)
    # From a boundary point that no step leaves, the next estimate takes more points.
    halved = replace(
        halved,
        phase=torch.where(stuck, _ESTIMATE, halved.phase),
        told=torch.where(stuck, 0, halved.told),
        round=halved.round + stuck,
    )
    return _to_boundary(rows, halved, x, landed, norm)


def _to_boundary(
    rows: Rows, state: HopSkipJumpState, far: Tensor, lanes: Tensor, norm: str
) -> HopSkipJumpState:
    """The lanes at the start of a binary search between their image and `far`."""
    whole = rownorm(far - rows.x, "Linf") if norm == "Linf" else torch.ones_like(state.high)
    return replace(
        state,
        far=where(lanes, far, state.far),
        low=torch.where(lanes, 0, state.low),
        high=torch.where(lanes, whole, state.high),
        phase=torch.where(lanes, _BINARY_SEARCH, state.phase),
        told=torch.where(lanes, 0, state.told),
    )


def _between(x: Tensor, far: Tensor, way: Tensor, norm: str) -> Tensor:
    """`far` brought to within `way` (S,) of the image in Linf, or to that share of the way to it in L2."""
    delta = far - x
    most = spread(way, delta)
    return x + (delta.clamp(-most, most) if norm == "Linf" else most * delta)


def _threshold(x: Tensor, norm: str) -> float:
    """How near the boundary must be found: d^-2 in Linf, d^-3/2 in L2, for d pixels (section IV.C)."""
    size = math.prod(x.shape[1:])
    return float(size) ** (-2 if norm == "Linf" else -1.5)


def _reach(x: Tensor, state: HopSkipJumpState, norm: str) -> Tensor:
    """The radius of the gradient estimate, (S,): the distance over d, as the threshold sets it."""
    size = math.prod(x.shape[1:])
    return torch.where(state.round <= 1, _FIRST_REACH, rownorm(state.boundary - x, norm) / size)

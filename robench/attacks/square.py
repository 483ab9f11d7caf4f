"""Square Attack: a query-efficient black-box adversarial attack via random search.

Andriushchenko et al. 2020, arXiv 1912.00049 (Linf and L2); Croce & Hein 2021, arXiv 2103.01208 (L1).
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, Attack, Problem, Rows, State, check_count, occurs, where
from robench.attacks._losses import _START, margin
from robench.attacks._projections import project_l1_box
from robench.core.registry import attacks
from robench.threats.threat import rownorm

# Random words are generated for this many queries at a time, which is cheaper than one call for each query.
_BLOCK = 64
# The fraction of pixels in a window halves after these queries (the paper's schedule for 10,000 queries).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class SquareState(State):
    """The best image so far and its loss; `words` holds the random bits of the queries from `block` on."""

    best: Tensor
    loss: Tensor
    accepted: Tensor
    step: Tensor
    words: Tensor
    block: Tensor


@attacks.register("square")
@dataclass(frozen=True)
class Square(Attack[SquareState]):
    """Random search with square windows; uses logits only.

    Windows may lie anywhere in the image, including its last row and column, as in the paper (Alg. 2 and 3).

    Args:
        queries: number of forward passes after the first point.
        p_init: initial fraction of the pixels in a window.
        restarts: number of random starts.
    """

    gradient_free: ClassVar[bool] = True
    in_pixels: ClassVar[bool] = True
    horizon: ClassVar[int] = _BLOCK

    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("queries", self.queries)
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init={self.p_init!r}: expected a fraction in (0, 1]")

    def init(self, problem: Problem, rows: Rows) -> SquareState:
        norm, eps = problem.threat.norm, problem.threat.eps
        first = torch.ones_like(rows.y)
        if norm == "Linf":
            channels, width = rows.x.shape[1], rows.x.shape[3]
            stripes = _signs(problem.stream.bits(rows.sample, rows.rank, _START, channels * width))
            best = (rows.x + eps * stripes.view(-1, channels, 1, width)).clamp(0, 1)
        else:
            best = _inside(rows.x, _tiles(problem, rows), norm, eps)
        return SquareState(
            best=best,
            loss=torch.full_like(rows.clean_logits[:, 0], math.inf),
            accepted=rows.y < 0,
            step=torch.zeros_like(rows.y),
            words=_words(problem, rows, first),
            block=first,
        )

    def ask(self, problem: Problem, rows: Rows, state: SquareState) -> Ask:
        index = (state.step - state.block).clamp(0, _BLOCK - 1)
        words = state.words.gather(1, index[:, None, None].expand(-1, 1, 4))[:, 0]
        propose = _linf if problem.threat.norm == "Linf" else _other
        point = propose(rows, state.best, words, self._side(problem, rows, state.step), problem.threat)
        first = state.step == 0
        return Ask(where(first, state.best, point) if occurs(first) else point)

    def tell(self, problem: Problem, rows: Rows, state: SquareState, answer: Answer) -> SquareState:
        loss = -margin(answer.logits, rows.y)
        accepted = (loss < state.loss) | (loss <= 0)
        after = SquareState(
            best=where(accepted, answer.x, state.best),
            loss=torch.where(accepted, loss, state.loss),
            accepted=accepted,
            step=state.step + 1,
            words=state.words,
            block=state.block,
        )
        # On other devices the host would wait for the lanes, and the engine calls `advance` in time.
        return self._supply(problem, rows, after, after.step) if loss.device.type == "cpu" else after

    def finished(self, state: SquareState) -> Tensor:
        return state.step > self.queries

    def advance(self, problem: Problem, rows: Rows, state: SquareState, offset: Tensor) -> SquareState:
        step = state.step + offset
        return replace(self._supply(problem, rows, state, step), step=step)

    def moved(self, state: SquareState) -> Tensor:
        return state.accepted

    def _supply(self, problem: Problem, rows: Rows, state: SquareState, needed: Tensor) -> SquareState:
        """The state with random words of query `needed` (S,); all lanes are refilled if any has run out."""
        if not occurs(needed - state.block >= _BLOCK):
            return state
        return replace(state, words=_words(problem, rows, needed), block=needed)

    def _side(self, problem: Problem, rows: Rows, step: Tensor) -> Tensor:
        height, width = rows.x.shape[2:]
        sides = _sides(self.queries, self.p_init, height, width, problem.threat.norm == "Linf", step.device)
        return sides[step.clamp_max(self.queries)]


@functools.lru_cache(maxsize=32)
def _sides(queries: int, p_init: float, height: int, width: int, fine: bool, device: torch.device) -> Tensor:
    """The side of the window at each step, int64 (queries + 1,); unless `fine`, odd and at least 3."""
    sides = []
    for query in range(queries):
        share = p_init / 2 ** sum(query > halving for halving in _HALVINGS)
        side = max(round(math.sqrt(share * height * width)), 1 if fine else 3)
        side += 0 if fine else 1 - side % 2
        sides.append(min(side, height, width))
    return torch.tensor([sides[0], *sides], device=device)


def _words(problem: Problem, rows: Rows, start: Tensor) -> Tensor:
    """Random words of the queries start .. start + _BLOCK - 1, int64 (S, _BLOCK, 4)."""
    steps = start[:, None] + torch.arange(_BLOCK, device=start.device)
    sample, rank = rows.sample[:, None].expand_as(steps), rows.rank[:, None].expand_as(steps)
    return problem.stream.bits(sample.flatten(), rank.flatten(), steps.flatten(), 4).view(-1, _BLOCK, 4)


def _signs(bits: Tensor) -> Tensor:
    """-1 or 1, from the lowest bit."""
    return (2 * (bits & 1) - 1).float()


def _channel_signs(word: Tensor, channels: int) -> Tensor:
    """A sign for each channel from one word, (S, C); beyond 31 channels the bits repeat."""
    return _signs(word[:, None] >> (torch.arange(channels, device=word.device) % 31))


def _corner(word: Any, side: Any, height: int, width: int) -> tuple[Any, Any]:
    """Top and left of a window of side `side`, uniform over all positions, (S,) each; tensors or arrays."""
    top = ((word >> 16) * (height + 1 - side)) >> 16
    left = ((word & 0xFFFF) * (width + 1 - side)) >> 16
    return top, left


def _linf(rows: Rows, best: Tensor, words: Tensor, side: Tensor, threat) -> Tensor:
    """`best` with one window moved to the surface of the ball, with a random sign for each channel (Alg. 2)."""
    lanes, channels, height, width = best.shape
    if best.device.type != "cpu":
        # The host would wait for the largest side.
        signs = _channel_signs(words[:, 2], channels)[:, :, None, None]
        inside, _ = _window(words[:, 0], side, height, width)
        moved = (rows.x + threat.eps * signs).clamp_(0, 1)
        return torch.where(inside > 0, moved, best)
    index, signs = _indices(words.numpy(), side.numpy(), channels, height, width)
    index = index[:, None].expand(-1, channels, -1)
    window = rows.x.flatten(2).gather(2, index).add_(signs[:, :, None], alpha=threat.eps).clamp_(0, 1)
    return best.flatten(2).scatter(2, index, window).view(lanes, channels, height, width)


def _indices(
    words: np.ndarray, side: np.ndarray, channels: int, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """The pixels of each window as indices of a flat image, (S, M), and a sign for each channel, (S, C).

    In NumPy, which takes a third of the time of torch here.
    """
    top, left = _corner(words[:, 0], side, height, width)
    # Window sizes differ between lanes: smaller windows repeat their last row and column, which has no effect.
    reach = np.minimum(np.arange(side.max()), side[:, None] - 1)
    index = ((top[:, None] + reach) * width)[:, :, None] + (left[:, None] + reach)[:, None]
    signs = 2 * ((words[:, 2, None] >> (np.arange(channels) % 31)) & 1) - 1
    return torch.from_numpy(index.reshape(len(index), -1)), torch.from_numpy(signs.astype(np.float32))


def _other(rows: Rows, best: Tensor, words: Tensor, side: Tensor, threat) -> Tensor:
    """`best` with the norm of one window moved to another window (Alg. 3), in L2 or L1."""
    channels, height, width = best.shape[1:]
    power = 2 if threat.norm == "L2" else 1
    delta = best - rows.x
    into, place = _window(words[:, 0], side, height, width)
    out, _ = _window(words[:, 1], side, height, width)
    union = torch.maximum(into, out)

    def powers(part: Tensor) -> Tensor:
        """Absolute values in L1, squares in L2, (S, C, H, W)."""
        return part.abs() if power == 1 else part.square()

    def sums(part: Tensor) -> Tensor:
        """The sum over each channel, (S, C, 1, 1)."""
        return part.sum((2, 3), keepdim=True)

    turned = ((words[:, 2] >> 31) & 1).bool()
    # On other devices the host would wait for the largest side.
    most = int(side.max()) if side.device.type == "cpu" else min(height, width)
    pattern = _pattern(side, place, turned, power, most)
    signs = _channel_signs(words[:, 2], channels)[:, :, None, None]
    spent, part = powers(delta), delta * into
    # The sum of the pattern and the content of the window, both of unit norm.
    new = torch.addcdiv(into * pattern * signs, part, sums(powers(part)).pow(1 / power) + 1e-12)
    spare = (threat.eps**power - sums(spent).sum(1, keepdim=True)).clamp_min(0)
    used = sums(spent * union)
    # In L1 every channel gets the budget of all channels, as in the reference; the projection follows.
    budget = (spare / channels + used).pow(1 / power) * (1 if power == 2 else channels)
    delta = torch.addcmul(delta * (1 - union), new, budget / (sums(powers(new)).pow(1 / power) + 1e-12))
    return _inside(rows.x, delta, threat.norm, threat.eps)


def _inside(x: Tensor, delta: Tensor, norm: str, eps: float) -> Tensor:
    """x + delta, scaled to the sphere and clipped in L2, or projected onto ball and box in L1."""
    if norm == "L1":
        return x + project_l1_box(x, delta, eps * (1 - 1e-6))
    scale = eps / (rownorm(delta, "L2") + 1e-12)
    return (x + delta * scale.view(-1, 1, 1, 1)).clamp(0, 1)


def _window(word: Tensor, side: Tensor, height: int, width: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A window as a float mask (S, 1, H, W), and row (S, H) and column (S, W) indices relative to its corner."""
    top, left = _corner(word, side, height, width)
    down = torch.arange(height, device=word.device) - top[:, None]
    across = torch.arange(width, device=word.device) - left[:, None]
    within = ((down >= 0) & (down < side[:, None]))[:, :, None] & ((across >= 0) & (across < side[:, None]))[
        :, None
    ]
    return within[:, None].float(), (down, across)


def _pattern(side: Tensor, place: tuple[Tensor, Tensor], turned: Tensor, power: int, most: int) -> Tensor:
    """The window of each lane filled with its pattern, (S, 1, H, W); values outside the window are arbitrary."""
    down, across = place
    table = _patterns(most, power, side.device)
    down, across = down[:, :, None].clamp(0, most - 1), across[:, None].clamp(0, most - 1)
    turned = turned[:, None, None]
    row, column = torch.where(turned, across, down), torch.where(turned, down, across)
    return table[side[:, None, None], row, column][:, None]


@functools.lru_cache(maxsize=32)
def _patterns(most: int, power: int, device: torch.device) -> Tensor:
    """Two opposite pyramids in a square of unit norm for every side up to `most`, (most + 1, most, most)."""
    table = torch.zeros(most + 1, most, most)
    for side in range(1, most + 1):
        square = torch.zeros(side, side)
        square[: side // 2] = _pyramid(side // 2, side, power)
        square[side // 2 :] = -_pyramid(side - side // 2, side, power)
        table[side, :side, :side] = square / square.abs().pow(power).sum().pow(1 / power)
    return table.to(device)


def _pyramid(height: int, width: int, power: int) -> Tensor:
    """Sums of 1 / (k + 1)^2 (L2) or ^4 (L1) over the rings around the center, of unit norm (eq. 3)."""
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    ring = torch.maximum(rows.abs()[:, None], columns.abs()[None])
    rings = max(height // 2, width // 2) + 1
    weight = torch.tensor([1 / (k + 1) ** (2 * (3 - power)) for k in range(rings)])
    heights = weight.flip(0).cumsum(0).flip(0)
    pyramid = heights[ring]
    return pyramid / pyramid.abs().pow(power).sum().pow(1 / power) if height else pyramid


def _tiles(problem: Problem, rows: Rows) -> Tensor:
    """The initial perturbation in L2 and L1, (S, C, H, W): a grid of patterns with random signs and orientations."""
    channels, height, width = rows.x.shape[1:]
    power = 2 if problem.threat.norm == "L2" else 1
    side = max(min(height, width) // 5, 1)
    start = max(min(height, width) - 5 * side, 0) // 2
    down, across = (height - start) // side, (width - start) // side
    count = down * across
    words = problem.stream.bits(rows.sample, rows.rank, _START, count).view(-1, down, across)
    turned = ((words >> 31) & 1).bool()[..., None, None]
    signs = torch.stack([_signs(words >> (c % 31)) for c in range(channels)], 1)[..., None, None]
    pattern = _patterns(side, power, rows.x.device)[side]
    tiles = torch.where(turned, pattern.T, pattern)[:, None] * signs
    grid = tiles.permute(0, 1, 2, 4, 3, 5).reshape(-1, channels, down * side, across * side)
    delta = torch.zeros_like(rows.x)
    delta[:, :, start : start + down * side, start : start + across * side] = grid
    return delta

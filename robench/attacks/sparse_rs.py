"""Sparse-RS: a versatile framework for query-efficient sparse black-box adversarial attacks.

Croce et al. 2022, arXiv 2006.12834: random search for few pixels (L0-RS) and for a patch (Patch-RS).
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, Attack, Problem, Rows, State, check_count, where
from robench.attacks._losses import _START, margin
from robench.core.registry import attacks

# Schedules: queries, out of 10,000, after which the changed fraction shrinks, and divisors of the initial fraction.
_L0 = (0, 50, 200, 500, 1000, 2000, 4000, 6000, 8000), (1, 2, 4, 5, 6, 8, 10, 12, 15, 20)
_PATCH = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000), (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# Number of squares in the initial patch, and the interval of queries at which it moves instead of being repainted.
_SQUARES, _MOVES = 1000, 4


@dataclass(frozen=True)
class _SearchState(State):
    """The best image so far, its loss, whether the last one was accepted, and the number of queries."""

    best: Tensor
    loss: Tensor
    accepted: Tensor
    step: Tensor


S = TypeVar("S", bound=_SearchState)


@dataclass(frozen=True)
class _Search(Attack[S]):
    """Base of both attacks: random search that keeps the best point.

    Args:
        queries: number of forward passes after the first point.
        alpha_init: initial fraction that is changed.
        restarts: number of random starts.
    """

    gradient_free: ClassVar[bool] = True
    in_pixels: ClassVar[bool] = True
    # Any number would work: random numbers only depend on the index of the query.
    horizon: ClassVar[int] = 64

    queries: int = 10_000
    alpha_init: float = 0.3
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("queries", self.queries)
        if not 0 < self.alpha_init <= 1:
            raise ValueError(f"alpha_init={self.alpha_init!r}: expected a fraction in (0, 1]")

    def advance(self, problem: Problem, rows: Rows, state: S, offset: Tensor) -> S:
        return replace(state, step=state.step + offset)

    def moved(self, state: S) -> Tensor:
        return state.accepted

    def finished(self, state: S) -> Tensor:
        return state.step > self.queries

    def _shares(self, schedule: tuple[tuple[int, ...], tuple[int, ...]], step: Tensor) -> Tensor:
        return _shares(self.queries, self.alpha_init, schedule, step.device)[step.clamp_max(self.queries)]


@functools.lru_cache(maxsize=32)
def _shares(
    queries: int, first: float, schedule: tuple[tuple[int, ...], tuple[int, ...]], device: torch.device
) -> Tensor:
    """The fraction to change at each step, (queries + 1,): the paper's schedule, rescaled to `queries`."""
    ends, parts = schedule
    place = [int(step / queries * 10_000) for step in range(queries + 1)]
    return torch.tensor([first / parts[sum(at > end for end in ends)] for at in place], device=device)


def _corners(bits: Tensor, channels: int) -> Tensor:
    """Colors whose channels are 0 or 1, (..., channels), from the bits of words (...)."""
    return ((bits[..., None] >> torch.arange(channels, device=bits.device)) & 1).float()


def _another(bits: Tensor, old: Tensor) -> Tensor:
    """Colors of zeros and ones that differ from `old` (..., C), from 32-bit words (...)."""
    channels = old.shape[-1]
    corner = ((old == 0) | (old == 1)).all(-1)
    code = ((old > 0.5).long() << torch.arange(channels, device=old.device)).sum(-1)
    drawn = (bits * torch.where(corner, 2**channels - 1, 2**channels)) >> 32
    return _corners(drawn + (corner & (drawn >= code)), channels)


@dataclass(frozen=True)
class SparseState(_SearchState):
    """Adds which pixels are changed, bool (S, H * W)."""

    chosen: Tensor


@attacks.register("sparse-rs")
@dataclass(frozen=True)
class SparseRS(_Search[SparseState]):
    """Random search over `eps` pixels with colors of zeros and ones (L0-RS); uses logits only."""

    @property
    def norms(self) -> tuple[str, ...]:
        return ("L0",)

    def init(self, problem: Problem, rows: Rows) -> SparseState:
        pixels = rows.x.shape[2] * rows.x.shape[3]
        count = min(int(problem.threat.eps), pixels - 1)
        words = problem.stream.bits(rows.sample, rows.rank, _START, 2 * pixels)
        place = words[:, :pixels].argsort(dim=1, stable=True)[:, :count]
        chosen = torch.zeros(len(rows.x), pixels, dtype=torch.bool, device=rows.x.device).scatter(
            1, place, True
        )
        colours = _corners(words[:, pixels:], rows.x.shape[1]).transpose(1, 2)
        best = torch.where(chosen[:, None], colours, rows.x.flatten(2)).view_as(rows.x)
        return SparseState(
            best,
            torch.full_like(rows.clean_logits[:, 0], math.inf),
            rows.y < 0,
            torch.zeros_like(rows.y),
            chosen,
        )

    def ask(self, problem: Problem, rows: Rows, state: SparseState) -> Ask:
        return Ask(self._proposed(problem, rows, state)[0])

    def tell(self, problem: Problem, rows: Rows, state: SparseState, answer: Answer) -> SparseState:
        loss = -margin(answer.logits, rows.y)
        accepted = (loss < state.loss) | (loss < 0)
        chosen = self._proposed(problem, rows, state)[1] if bool(accepted.any()) else state.chosen
        return SparseState(
            best=where(accepted, answer.x, state.best),
            loss=torch.where(accepted, loss, state.loss),
            accepted=accepted,
            step=state.step + 1,
            chosen=where(accepted, chosen, state.chosen),
        )

    def _proposed(self, problem: Problem, rows: Rows, state: SparseState) -> tuple[Tensor, Tensor]:
        """The next image and its changed pixels: some are restored and as many others changed (Alg. 2)."""
        channels, height, width = rows.x.shape[1:]
        pixels, count = height * width, int(state.chosen[0].sum())
        share = self._shares(_L0, state.step)
        some = (share * count + 1e-6).long().clamp(1, min(count, pixels - count))
        some = torch.where(state.step == 0, 0, some)
        most = int(some.max())
        if not most:
            return state.best, state.chosen
        words = problem.stream.bits(rows.sample, rows.rank, state.step, 2 * pixels)
        order, colour = words[:, :pixels], words[:, pixels:]
        # The pixels to restore and to change are those with the smallest words among the chosen and the others.
        restored = (order + (~state.chosen << 33)).topk(most, largest=False).indices
        changed = (order + (state.chosen << 33)).topk(most, largest=False).indices
        counts = torch.arange(most, device=some.device) < some[:, None]
        old, clean = state.best.flatten(2), rows.x.flatten(2)
        word = colour.gather(1, changed)
        at = changed[:, None].expand(-1, channels, -1)
        now = old.gather(2, at)
        drawn = _corners(word, channels)
        alone = (some == 1)[:, None, None]
        drawn = torch.where(alone, _another(word, now.transpose(1, 2)), drawn).transpose(1, 2)
        from_ = restored[:, None].expand(-1, channels, -1)
        image = old.scatter(
            2, from_, torch.where(counts[:, None], clean.gather(2, from_), old.gather(2, from_))
        )
        image = image.scatter(2, at, torch.where(counts[:, None], drawn, now))
        chosen = state.chosen.scatter(1, restored, ~counts).scatter(1, changed, counts)
        return image.view_as(rows.x), chosen


@dataclass(frozen=True)
class PatchState(_SearchState):
    """Adds the best patch, (S, C, s, s), and the row and column of its corner, (S, 2)."""

    patch: Tensor
    place: Tensor


@attacks.register("patch-rs")
@dataclass(frozen=True)
class PatchRS(_Search[PatchState]):
    """Random search over the colors and the position of a square patch (Patch-RS); uses logits only."""

    alpha_init: float = 0.4

    @property
    def norms(self) -> tuple[str, ...]:
        return ("patch",)

    def init(self, problem: Problem, rows: Rows) -> PatchState:
        lanes, channels, height, width = rows.x.shape
        side = min(int(problem.threat.eps), height, width)
        words = problem.stream.bits(rows.sample, rows.rank, _START, 2 + 4 * _SQUARES)
        room = torch.tensor([height - side + 1, width - side + 1], device=rows.x.device)
        place = (words[:, :2] * room) >> 32
        squares = words[:, 2:].reshape(lanes * _SQUARES, 4)
        size = 1 + ((squares[:, 0] * max(math.ceil(math.sqrt(side)) - 1, 1)) >> 32)
        corner = (squares[:, 1:3] * (side - size + 1)[:, None]) >> 32
        # Later squares cover earlier ones.
        order = torch.arange(1, _SQUARES + 1, device=words.device).view(-1, 1, 1)
        last = (_window(corner, size, side).view(lanes, _SQUARES, side, side) * order).amax(1).flatten(1)
        colours = _corners(squares[:, 3], channels).view(lanes, _SQUARES, channels)
        black = torch.zeros_like(colours[:, :1])
        shown = torch.cat([black, colours], 1).gather(1, last[..., None].expand(-1, -1, channels))
        patch = shown.transpose(1, 2).reshape(lanes, channels, side, side)
        return PatchState(
            _pasted(rows.x, patch, place),
            torch.full_like(rows.clean_logits[:, 0], math.inf),
            rows.y < 0,
            torch.zeros_like(rows.y),
            patch,
            place,
        )

    def ask(self, problem: Problem, rows: Rows, state: PatchState) -> Ask:
        return Ask(_pasted(rows.x, *self._proposed(problem, rows, state)))

    def tell(self, problem: Problem, rows: Rows, state: PatchState, answer: Answer) -> PatchState:
        loss = -margin(answer.logits, rows.y)
        accepted = (loss < state.loss) | (loss < 0)
        patch, place = (
            self._proposed(problem, rows, state) if bool(accepted.any()) else (state.patch, state.place)
        )
        return PatchState(
            patch=where(accepted, patch, state.patch),
            place=where(accepted, place, state.place),
            best=where(accepted, answer.x, state.best),
            loss=torch.where(accepted, loss, state.loss),
            accepted=accepted,
            step=state.step + 1,
        )

    def _proposed(self, problem: Problem, rows: Rows, state: PatchState) -> tuple[Tensor, Tensor]:
        """The next patch and its position: repainted in a window, or moved (Alg. 3)."""
        channels, side = state.patch.shape[1:3]
        room = torch.tensor(rows.x.shape[2:], device=rows.x.device) - side
        words = problem.stream.bits(rows.sample, rows.rank, state.step, 6)
        reach = ((self.queries - state.step).clamp_min(0) * 0.75 / self.queries * rows.x.shape[2]).long()
        moves = (state.step % _MOVES == 0) & (reach > 0) & (state.step > 0)
        step = ((words[:, :2] * (2 * reach + 1)[:, None]) >> 32) - reach[:, None]
        place = where(moves, (state.place + step).clamp_min(0).minimum(room), state.place)

        size = (self._shares(_PATCH, state.step).sqrt() * side + 1e-6).long().clamp(1, side)
        corner = (words[:, 2:4] * (side - size + 1)[:, None]) >> 32
        inside = _window(corner, size, side)
        # A window of one pixel gets a different colour; in the second half of these queries, only one channel changes.
        now = (state.patch * inside).sum((2, 3))
        single = torch.nn.functional.one_hot((words[:, 5] * channels) >> 32, channels)
        one = where(state.step < self._single(side), _another(words[:, 4], now), (now - single).abs())
        colour = where(size > 1, _corners(words[:, 4], channels), one)
        repaints = (~moves & (state.step > 0))[:, None, None, None]
        return torch.where(inside & repaints, colour[..., None, None], state.patch), place

    def _single(self, side: int) -> int:
        """The query from which one channel changes at a time: halfway from the first window of one pixel to the end."""
        shares = _shares(self.queries, self.alpha_init, _PATCH, torch.device("cpu"))
        ones = ((shares.sqrt() * side + 1e-6).long() <= 1).nonzero()[:, 0]
        first = int(ones[0]) if len(ones) else self.queries
        return first + (self.queries - first) // 2


def _window(corner: Tensor, size: Tensor, side: int) -> Tensor:
    """The pixels of a square of `size` (S,) at `corner` (S, 2), bool (S, 1, side, side)."""
    place = torch.arange(side, device=corner.device)
    hit = (place >= corner[..., None]) & (place < (corner + size[:, None])[..., None])
    return (hit[:, 0, :, None] & hit[:, 1, None, :])[:, None]


def _pasted(x: Tensor, patch: Tensor, place: Tensor) -> Tensor:
    """The images (S, C, H, W) with each patch at the row and column `place` (S, 2) of its corner."""
    channels, height, width = x.shape[1:]
    side = patch.shape[-1]
    down = torch.arange(height, device=x.device) - place[:, :1]
    across = torch.arange(width, device=x.device) - place[:, 1:]
    index = down.clamp(0, side - 1)[:, :, None] * side + across.clamp(0, side - 1)[:, None]
    canvas = patch.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, channels, -1)).view_as(x)
    inside = ((down >= 0) & (down < side))[:, :, None] & ((across >= 0) & (across < side))[:, None]
    return torch.where(inside[:, None], canvas, x)

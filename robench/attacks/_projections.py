"""Projections shared by attacks, row by row and mostly without sorting.

`project_hyperplane` projects onto a hyperplane inside the box, for FAB (Croce & Hein 2019, arXiv 1907.02044,
section 3.1). `project_l1_box` projects onto the L1 ball inside the box (Croce & Hein 2021, arXiv 2103.01208).

Each row of a result depends on that row only: loops run until every row has converged, and a converged row no longer
changes. The host would wait for another device to see that: there one loop has a fixed number of steps, and the other
rarely looks. Masks are floats that are multiplied, which CPUs vectorize better than `torch.where`.
"""

from itertools import count

import torch
from torch import Tensor

from robench.attacks._base import occurs
from robench.core.torch_state import cumsum

_LARGEST = torch.finfo(torch.float32).max
# Newton steps of `_multiplier` on devices other than a CPU, for a constant rate and for others. A row with a constant
# rate took at most 7 on images and on heavy-tailed random numbers, and others 15; a row that needs more stops short.
_STEPS = 8, 16
# Steps of `project_l1_box` between two looks on devices other than a CPU; a row took at most 32.
_LOOK_EVERY = 16


def project_hyperplane(t: Tensor, w: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The smallest step d with w·d = gap and t + d in [0, 1].

    If the hyperplane does not meet the box, d leads to the corner closest to it. The scale of `w` does not matter; a
    row of `w` that is zero or not finite gives d = 0.

    Args:
        t: points in [0, 1], (..., N, D); leading dimensions share their normals.
        w: normals, (N, D).
        gap: b - w·t for the offset b of the hyperplane, (..., N).
        norm: norm in which d is smallest, "Linf", "L2" or "L1".

    Returns:
        d, (..., N, D).
    """
    gain = w.abs()
    scale = gain.amax(1)
    usable = (scale > 0) & (scale < torch.inf)
    gap = torch.where(usable & (gap.abs() < torch.inf), gap, 0)
    scale = torch.where(usable, scale, 1)
    w = w / scale[:, None]
    if occurs(~usable):
        w = w.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    # Towards the hyperplane w·d changes by |gap|, so gain·|d| must reach `target`.
    gain, target = torch.abs(w, out=gain), (gap.abs() / scale).clamp_max(_LARGEST)
    direction = w.sign_() * gap.sign()[..., None]
    room = _room(t, direction)
    if norm == "L1":
        return direction.mul_(_fill(gain.expand_as(room), room, target))
    rate = None if norm == "Linf" else gain
    m = _multiplier(gain, rate, room, target)[..., None]
    return direction.mul_(torch.minimum(room, m if rate is None else rate * m, out=room))


def _multiplier(gain: Tensor, rate: Tensor | None, room: Tensor, target: Tensor) -> Tensor:
    """The least m >= 0 with sum(gain * min(m * rate, room)) = target, (..., N); very large if there is none.

    The sum is increasing, concave and piecewise linear in m. Newton steps from 0 therefore never overshoot and reach
    the piece of the solution after finitely many steps, usually a few, whereas sorting the breakpoints costs D log D.

    Args:
        gain: (N, D), not negative.
        rate: (N, D), not negative; None for a rate of 1.
        room: (..., N, D).
        target: (..., N).
    """
    unreachable = (gain * room).sum(-1) <= target
    m = torch.where(unreachable, _LARGEST, 0.0)
    # Without a target, these rows stay as they are.
    target = target.masked_fill(unreachable, 0)
    return _newton(gain, rate, room, target, m, 0.0, target)


def _newton(
    gain: Tensor,
    rate: Tensor | None,
    room: Tensor,
    target: Tensor,
    m: Tensor,
    reach: Tensor | float,
    missing: Tensor,
) -> Tensor:
    """The Newton steps of `_multiplier` from `m`; sizes are at most `reach`, and the sum is `missing` too small."""
    slopes = gain if rate is None else gain * rate
    free, product = torch.empty_like(room), torch.empty_like(room)
    # Stop once the remainder is below rounding error, or a row could creep forever.
    negligible = 1e-6 * target
    looks = m.device.type == "cpu"
    for _ in count() if looks else range(_STEPS[rate is not None]):
        short = missing > negligible
        if looks:
            rows = short.flatten().nonzero()[:, 0]
            if not len(rows):
                break
            if 2 * len(rows) < short.numel():
                return _newton_of_few(rows, gain, rate, room, target, m, missing)
        torch.gt(room, reach, out=free)
        slope = torch.mul(free, slopes, out=product).sum(-1)
        nearer = (m + missing / slope.clamp_min_(1e-30)).clamp_max_(_LARGEST)
        grows = (nearer > m) & short
        if looks and not grows.any():
            break
        m = torch.where(grows, nearer, m)
        reach = m[..., None] if rate is None else m[..., None] * rate
        missing = target - torch.minimum(room, reach, out=product).mul_(gain).sum(-1)
    return m


def _newton_of_few(
    rows: Tensor, gain: Tensor, rate: Tensor | None, room: Tensor, target: Tensor, m: Tensor, missing: Tensor
) -> Tensor:
    """The same, where only some rows of all (..., N), int64, still move."""
    # torch sums a single row in another order than rows of a batch.
    rows = rows if len(rows) > 1 else rows.repeat(2)
    normals = rows % len(gain)
    gain, rate = gain[normals], None if rate is None else rate[normals]
    few = m.flatten()[rows]
    reach = few[:, None] if rate is None else few[:, None] * rate
    few = _newton(
        gain, rate, room.flatten(0, -2)[rows], target.flatten()[rows], few, reach, missing.flatten()[rows]
    )
    return m.flatten().index_copy(0, rows, few).view_as(m)


def _fill(gain: Tensor, room: Tensor, target: Tensor) -> Tensor:
    """The sizes, (..., D) in [0, room], of least sum with sum(gain * size) = target, filled by descending gain."""
    gain, order = gain.sort(dim=-1, descending=True, stable=True)
    room = room.gather(-1, order)
    worth = gain * room
    before = cumsum(worth, -1) - worth
    size = ((target[..., None] - before).clamp_min_(0) / gain.clamp_min(1e-30)).minimum(room)
    return torch.empty_like(size).scatter_(-1, order, size * gain.sign())


def _room(x: Tensor, sign: Tensor) -> Tensor:
    """The distance of each pixel to the box in direction `sign` (-1, 0 or 1): x downwards, 1 - x upwards.

    No step of at most this length leaves [0, 1], including rounding.
    """
    return sign.clamp_min(0).addcmul_(sign, x, value=-1).clamp_min_(0)


def project_l1_box(x: Tensor, delta: Tensor, eps: float | Tensor) -> Tensor:
    """Project `delta` in L2 onto the perturbations of L1 norm at most `eps` that keep x + delta in [0, 1].

    The result is sign(delta) * clamp(|delta| - m, 0, room), where room is the distance to the box and m >= 0 is the
    number for which the L1 norm is eps, or 0 if the box alone brings it below eps.

    Args:
        x: images, (N, ...) in [0, 1].
        delta: perturbations of the same shape.
        eps: radius of the ball, a number or shape (N,).

    Returns:
        The projected perturbation d with the shape of `delta`: x + d is in [0, 1] exactly, and the L1 norm of d is at
        most eps up to rounding.
    """
    eps = torch.as_tensor(eps, dtype=x.dtype, device=x.device).expand(len(x))
    size = delta.abs().flatten(1)
    sign = delta.sign().flatten(1)
    room = _room(x.flatten(1), sign)
    floor = size - room
    free, bound = torch.empty_like(size), torch.empty_like(size)

    # Newton steps inside a shrinking bracket, because the sum is monotone but not convex in m. Every third step halves
    # the bracket, so no row takes more than three times the steps of bisection.
    low, high = torch.zeros_like(size[:, 0]), size.amax(1)
    look_every = 1 if x.device.type == "cpu" else _LOOK_EVERY
    m = low
    for i in range(100):
        shrunk = size - m[:, None]
        excess = torch.minimum(shrunk, room).clamp_min_(0).sum(1) - eps
        torch.gt(shrunk, 0, out=free)
        torch.lt(floor, m[:, None], out=bound)
        slope = (free * bound).sum(1)
        low = torch.where(excess > 0, m, low)
        high = torch.where(excess > 0, high, m)
        newton = m + excess / slope.clamp_min(1)
        middle = 0.5 * (low + high)
        inside = (newton > low) & (newton < high) & (slope > 0) & (i % 3 != 2)
        # On the piece of the solution the Newton step is exact up to rounding.
        moves = (excess.abs() > 1e-6 * eps) & (low < high)
        step = torch.where(moves, torch.where(inside, newton, middle), m)
        if (i + 1) % look_every == 0 and torch.equal(step, m):
            break
        m = step
    projected = torch.minimum(size - m[:, None], room).clamp_min_(0)
    # Remove rounding errors: shrinking towards 0 stays inside the ball and the box.
    projected = projected * (eps / projected.sum(1).clamp_min(1e-30)).clamp_max(1.0)[:, None]
    return (sign * projected).view_as(delta)

"""Projections that the attacks share, each row on its own and without sorting where that can be avoided.

`project_hyperplane`: onto a hyperplane within the box, as FAB needs it (Croce & Hein 2019, arXiv 1907.02044,
section 3.1). `project_l1_box`: onto the L1 ball within the box (Croce & Hein 2021, arXiv 2103.01208).

A row's result hangs on nothing but that row: the loops run until every row has converged, and a converged row
no longer changes. Masks are kept as floats and sums as products, which CPUs vectorise and `torch.where` not.
"""

import torch
from torch import Tensor

_LARGEST = torch.finfo(torch.float32).max


def project_hyperplane(t: Tensor, w: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The smallest step d with w·d = gap and t + d in [0, 1].

    Where the box keeps the hyperplane out of reach, the corner that comes closest to it. The scale of `w`
    does not matter; a row of `w` that is zero or not finite gives d = 0.

    Args:
        t: points in [0, 1], (..., N, D): several may share their normals.
        w: normals, (N, D).
        gap: how far w·t is from the hyperplane's offset b, b - w·t, (..., N).
        norm: in which d is smallest: "Linf", "L2" or "L1".

    Returns:
        d, (..., N, D).
    """
    scale = w.abs().amax(1)
    usable = (scale > 0) & scale.isfinite() & gap.isfinite()
    gap = torch.where(usable, gap, 0)
    scale = torch.where((scale > 0) & scale.isfinite(), scale, 1)
    w = (w / scale[:, None]).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    # Towards the hyperplane: w·d grows by |gap|, that is gain·|d| by `target`.
    gain, target = w.abs(), (gap.abs() / scale).clamp_max(_LARGEST)
    direction = w.sign() * gap.sign()[..., None]
    room = _room(t, direction)
    if norm == "L1":
        return direction.mul_(_fill(gain.expand_as(room), room, target))
    rate = None if norm == "Linf" else gain
    m = _multiplier(gain, rate, room, target)[..., None]
    return direction.mul_(torch.minimum(room, m if rate is None else rate * m, out=room))


def _multiplier(gain: Tensor, rate: Tensor | None, room: Tensor, target: Tensor) -> Tensor:
    """The least m >= 0 with sum(gain * min(m * rate, room)) = target, (..., N); huge where there is none.

    The sum is increasing, concave and piecewise linear in m, so Newton's steps from 0 never overshoot, and
    end on the solution's own piece after finitely many: a handful, where sorting the breakpoints costs
    D log D.

    Args:
        gain, rate: (N, D), not negative; None for a rate of 1.
        room: (..., N, D); target: (..., N).
    """
    slopes = gain if rate is None else gain * rate
    unreachable = (gain * room).sum(-1) <= target
    m, missing = torch.where(unreachable, _LARGEST, 0.0), torch.where(unreachable, 0, target)
    free, product = torch.empty_like(room), torch.empty_like(room)
    wanted: Tensor | float = 0.0
    while True:
        torch.gt(room, wanted, out=free)
        slope = torch.mul(free, slopes, out=product).sum(-1)
        nearer = (m + missing / slope.clamp_min_(1e-30)).clamp_max_(_LARGEST)
        # Rounding could make a row creep for ever: what is missing must be more than it.
        grows = (nearer > m) & (missing > 1e-6 * target)
        if not grows.any():
            return m
        m = torch.where(grows, nearer, m)
        wanted = m[..., None] if rate is None else m[..., None] * rate
        taken = torch.minimum(room, wanted, out=product).mul_(gain)
        missing = torch.where(unreachable, 0, target - taken.sum(-1))


def _fill(gain: Tensor, room: Tensor, target: Tensor) -> Tensor:
    """The step sizes, (..., D) in [0, room], of least sum with sum(gain * size) = target: best gain first."""
    gain, order = gain.sort(dim=-1, descending=True, stable=True)
    room = room.gather(-1, order)
    worth = gain * room
    before = worth.cumsum(-1) - worth
    size = ((target[..., None] - before).clamp_min_(0) / gain.clamp_min(1e-30)).minimum(room)
    return torch.empty_like(size).scatter_(-1, order, size * gain.sign())


def _room(x: Tensor, sign: Tensor) -> Tensor:
    """How far each pixel may go towards `sign` (-1, 0 or 1): x downwards, 1 - x upwards.

    No step of at most that length leaves [0, 1], rounding included.
    """
    return torch.addcmul((sign > 0).to(x.dtype), sign, x, value=-1).clamp_min_(0)


def project_l1_box(x: Tensor, delta: Tensor, eps: float | Tensor) -> Tensor:
    """The point nearest to `delta` in L2 among those of L1 norm at most `eps` that keep x + delta in [0, 1].

    Its pixels are sign(delta) * clamp(|delta| - m, 0, room), with room the way to the box and m >= 0 the one
    number for which their sum is eps (0 where the box alone already does it).

    Args:
        x: images, (N, ...) in [0, 1].
        delta: perturbations of the same shape.
        eps: radius of the ball, one for all or (N,).

    Returns:
        The projected perturbation d, of `delta`'s shape: x + d lies in [0, 1] to the last bit, and the L1 norm of d
        is at most eps up to rounding.
    """
    eps = torch.as_tensor(eps, dtype=x.dtype, device=x.device).expand(len(x))
    size = delta.abs().flatten(1)
    sign = delta.sign().flatten(1)
    room = _room(x.flatten(1), sign)
    floor = size - room
    free, bound = torch.empty_like(size), torch.empty_like(size)

    # Newton's steps kept in a shrinking bracket, for the sum is monotone but not convex in m; every third
    # halves the bracket, so that no row takes more than three times the steps of a bisection.
    low, high = torch.zeros_like(size[:, 0]), size.amax(1)
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
        # On the piece of the solution Newton's step is exact: what is left is rounding.
        moves = (excess.abs() > 1e-6 * eps) & (low < high)
        step = torch.where(moves, torch.where(inside, newton, middle), m)
        if torch.equal(step, m):
            break
        m = step
    kept = torch.minimum(size - m[:, None], room).clamp_min_(0)
    # The last digits: shrinking towards 0 leaves neither the ball nor the box.
    kept = kept * (eps / kept.sum(1).clamp_min(1e-30)).clamp_max(1.0)[:, None]
    return (sign * kept).view_as(delta)

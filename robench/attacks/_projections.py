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

    Where the box keeps the hyperplane out of reach, the corner that comes closest to it. The scale of `w` does
    not matter; a row of `w` that is zero or not finite gives d = 0.

    Args:
        t: points, (N, D) in [0, 1].
        w: normals, (N, D).
        gap: how far w·t is from the hyperplane's offset b, b - w·t, (N,).
        norm: in which d is smallest: "Linf", "L2" or "L1".

    Returns:
        d, (N, D).
    """
    scale = w.abs().amax(1)
    usable = (scale > 0) & scale.isfinite() & gap.isfinite()
    gap = torch.where(usable, gap, 0)
    factor = gap.sign() / torch.where(usable, scale, 1)
    # Towards the hyperplane: w·d grows by |gap|, that is direction·d by `target`.
    direction = (w * factor[:, None]).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    target = (gap * factor).clamp_max(_LARGEST)
    gain = direction.abs()
    # How far each pixel may go: t downwards, 1 - t upwards.
    room = (0.5 + direction.sign() * (0.5 - t)).clamp_min_(0)
    if norm == "L1":
        return direction.sign() * _fill(gain, room, target)
    if norm == "Linf":
        return direction.sign() * torch.minimum(room, _multiplier(gain, None, room, target)[:, None])
    rate = gain
    return direction.sign() * torch.minimum(room, rate * _multiplier(gain, rate, room, target)[:, None])


def _multiplier(gain: Tensor, rate: Tensor | None, room: Tensor, target: Tensor) -> Tensor:
    """The least m >= 0 with sum(gain * min(m * rate, room)) = target, (N,); huge where there is none.

    The sum is increasing, concave and piecewise linear in m, so Newton's steps from 0 never overshoot, and end
    on the solution's own piece after finitely many: a handful, where sorting the breakpoints costs D log D.
    """
    slopes = gain if rate is None else gain * rate
    unreachable = (gain * room).sum(1) <= target
    m = torch.where(unreachable, _LARGEST, 0.0)
    free = torch.empty_like(room)
    while True:
        wanted = m[:, None] if rate is None else m[:, None] * rate
        missing = target - (gain * torch.minimum(wanted, room)).sum(1)
        torch.gt(room, wanted, out=free)
        nearer = (m + missing / (slopes * free).sum(1).clamp_min_(1e-30)).clamp_max_(_LARGEST)
        # Rounding could make a row creep for ever: what is missing must be more than it.
        grows = (nearer > m) & (missing > 1e-7 * target)
        if not grows.any():
            return m
        m = torch.where(grows, nearer, m)


def _fill(gain: Tensor, room: Tensor, target: Tensor) -> Tensor:
    """The step sizes, (N, D) in [0, room], of least sum with sum(gain * size) = target: best gain first."""
    gain, order = gain.sort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    worth = gain * room
    before = worth.cumsum(1) - worth
    size = ((target[:, None] - before).clamp_min_(0) / gain.clamp_min(1e-30)).minimum(room)
    return torch.empty_like(size).scatter_(1, order, size * gain.sign())


def project_l1_box(x: Tensor, delta: Tensor, eps: float) -> Tensor:
    """The point nearest to `delta` in L2 among those of L1 norm at most `eps` that keep x + delta in [0, 1].

    Its pixels are sign(delta) * clamp(|delta| - m, 0, room), with room the way to the box and m >= 0 the one
    number for which their sum is eps (0 where the box alone already does it).

    Args:
        x: images, (N, ...) in [0, 1].
        delta: perturbations of the same shape.
        eps: radius of the ball.

    Returns:
        The projected perturbation, of `delta`'s shape, its L1 norm at most eps up to rounding.
    """
    size = delta.abs().flatten(1)
    sign = delta.sign().flatten(1)
    room = (0.5 + sign * (0.5 - x.flatten(1))).clamp_min_(0)
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

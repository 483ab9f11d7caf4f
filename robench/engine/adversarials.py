"""The images that fool a defense among those that do not, and how far they are from where they came from."""

from collections.abc import Callable

import torch
from torch import Tensor

from robench.data._pixels import Mapped, Replaced, Stack
from robench.threat import Threat


def adversarials(
    threat: Threat,
    x: Tensor | Stack,
    ids: Tensor,
    rows: list[int],
    point: Callable[[int], Tensor],
    *,
    device: torch.device,
    lanes: int,
) -> tuple[Tensor | Stack, Tensor | Stack]:
    """The points that fool, every other sample's being its origin, and their images; in memory only where the
    images are.

    Args:
        x, ids: (N, C, H, W) and (N,), of all samples.
        rows: of the samples that have a point that fools.
        point: what it is, in the threat's coordinates.
        lanes: images made at a time.
    """

    def images(lanes: list[int], points: Tensor) -> Tensor:
        return threat.image(x[lanes].to(device), points.to(device), ids[lanes].to(device)).cpu()

    if isinstance(x, Stack):
        points = Replaced(Mapped(x, threat.origin), rows, point)
        return points, Replaced(x, rows, lambda i: images([i], point(i)[None])[0])
    points, x_adv = threat.origin(x).clone(), x.clone()
    for i in rows:
        points[i] = point(i)
    for start in range(0, len(rows), lanes):
        some = rows[start : start + lanes]
        x_adv[some] = images(some, points[some])
    return points, x_adv


def distances(threat: Threat, x: Tensor | Stack, points: Tensor | Stack, lanes: int) -> Tensor:
    """How far each point is from its image, float64 (N,)."""
    # All at once where they are in memory: a part of a single row is summed in another order.
    size = lanes if isinstance(x, Stack) else len(x)
    pairs = zip(x.split(size), points.split(size), strict=True)
    return torch.cat([threat.distance(x, point) for x, point in pairs])

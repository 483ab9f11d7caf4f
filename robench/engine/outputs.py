"""The images that fool a defense among those that do not, and how far they are from where they came from."""

from collections.abc import Callable

import torch
from torch import Tensor

from robench.data._lazy_images import LazyImages, Mapped, Replaced
from robench.engine.attack_context import Samples
from robench.threats.threat import Threat


def adversarials(
    threat: Threat,
    samples: Samples,
    rows: list[int],
    point: Callable[[int], Tensor],
    *,
    device: torch.device,
    batch_size: int,
) -> tuple[Tensor | LazyImages, Tensor | LazyImages]:
    """The points that fool, every other sample's being its origin, and their images; in memory only where the
    images are.

    Args:
        rows: of the samples that have a point that fools.
        point: what it is, in the threat's coordinates.
        batch_size: images made at a time.
    """

    x, ids = samples.x, samples.ids

    def points_of(chosen: list[int]) -> Tensor:
        return torch.stack([point(i) for i in chosen])

    def images(chosen: list[int], points: Tensor) -> Tensor:
        return threat.image(x[chosen].to(device), points.to(device), ids[chosen].to(device)).cpu()

    if isinstance(x, LazyImages):
        points = Replaced(Mapped(x, threat.origin), rows, points_of)
        if not threat.name:
            return points, points
        return points, Replaced(x, rows, lambda chosen: images(chosen, points_of(chosen)))
    points = threat.origin(x).clone()
    for i in rows:
        points[i] = point(i)
    if not threat.name:
        # The point is the image.
        return points, points
    x_adv = x.clone()
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        x_adv[some] = images(some, points[some])
    return points, x_adv


def distances(threat: Threat, x: Tensor | LazyImages, points: Tensor | LazyImages, batch_size: int) -> Tensor:
    """How far each point is from its image, float64 (N,)."""
    parts = []
    for one, other in zip(x.split(batch_size), points.split(batch_size), strict=True):
        # A single row is summed in another order than a row among others.
        twice = len(one) == 1 < len(x)
        one, other = (torch.cat([each, each]) if twice else each for each in (one, other))
        parts.append(threat.distance(one, other)[: 1 if twice else None])
    return torch.cat(parts)

"""Adversarial images of a run and their distances from the clean images."""

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
    """The points of all samples and their images: adversarial ones of fooled samples, else the origin.

    The results are lazy if the images are.

    Args:
        rows: indices of the fooled samples.
        point: the adversarial point of a sample in the threat's coordinates.
        batch_size: number of images computed at a time.
    """

    x, ids = samples.x, samples.ids

    def points_of(indices: list[int]) -> Tensor:
        return torch.stack([point(i) for i in indices])

    def images(indices: list[int], points: Tensor) -> Tensor:
        return threat.image(x[indices].to(device), points.to(device), ids[indices].to(device)).cpu()

    if isinstance(x, LazyImages):
        points = Replaced(Mapped(x, threat.origin), rows, points_of)
        if not threat.name:
            return points, points
        return points, Replaced(x, rows, lambda indices: images(indices, points_of(indices)))
    points = threat.origin(x).clone()
    for i in rows:
        points[i] = point(i)
    if not threat.name:
        # The point is the image.
        return points, points
    x_adv = x.clone()
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        x_adv[batch] = images(batch, points[batch])
    return points, x_adv


def distances(threat: Threat, x: Tensor | LazyImages, points: Tensor | LazyImages, batch_size: int) -> Tensor:
    """The distance of each point from its clean image, float64 (N,)."""
    parts = []
    for clean, perturbed in zip(x.split(batch_size), points.split(batch_size), strict=True):
        # A single row is duplicated, because the order of summation differs from that of a row in a batch.
        is_single = len(clean) == 1 < len(x)
        clean, perturbed = (torch.cat([row, row]) if is_single else row for row in (clean, perturbed))
        parts.append(threat.distance(clean, perturbed)[: 1 if is_single else None])
    return torch.cat(parts)

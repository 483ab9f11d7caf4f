"""Objectives on features: their dependence on the image (nHSIC), and their distance from reference features."""

import torch
from torch import Tensor

from robench.attacks._base import Rows
from robench.core.errors import UsageError
from robench.core.hsic import nhsic_shares


def information(x: Tensor, features: tuple[Tensor, ...], group: int) -> Tensor:
    """The share of each row in nHSIC(features, x) over its group, averaged over layers, (S,).

    The shares of a group sum to its nHSIC, so the gradient of the sum is that of the nHSIC.

    Args:
        x: points, (S, C, H, W).
        features: one tensor (S, ...) for each layer.
        group: number of consecutive rows in a group.
    """
    points = x.unflatten(0, (-1, group))
    shares = [nhsic_shares(layer.unflatten(0, (-1, group)), points).flatten() for layer in features]
    return torch.stack(shares).mean(0)


def distances(features: tuple[Tensor, ...], reference: Tensor) -> Tensor:
    """The L2 distance between features and reference features, (layers, S).

    Args:
        features: one tensor (S, ...) for each layer.
        reference: reference features, flattened and concatenated over layers, (S, F).
    """
    return torch.stack([(a - b).norm(dim=1) for a, b in _layers(features, reference)])


def relative_distance(features: tuple[Tensor, ...], reference: Tensor) -> Tensor:
    """The L2 distance divided by the norm of the reference features, averaged over layers, (S,)."""
    parts = [(a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-12) for a, b in _layers(features, reference)]
    return torch.stack(parts).mean(0)


def _layers(features: tuple[Tensor, ...], reference: Tensor) -> list[tuple[Tensor, Tensor]]:
    flat = [layer.flatten(1) for layer in features]
    return list(zip(flat, reference.split([layer.shape[1] for layer in flat], 1), strict=True))


def themselves(run: Rows, rows: Rows) -> Tensor:
    """The index in the run of the image of each row, (S,)."""
    order = run.sample.argsort(stable=True)
    return order[torch.searchsorted(run.sample[order], rows.sample)]


def nearest_other_class(run: Rows, rows: Rows, target: Tensor, restarts: int) -> Tensor:
    """The image of the run whose features each row should match, as an index into the run, (S,).

    Candidates are the images that the surrogate assigns to the target class or, if there are none, to any class other
    than the label. The first restart takes the nearest one in pixels (L2), the second the next nearest, and so on.

    Raises:
        UsageError: if the surrogate assigns every image of the run to the label of a row.
    """
    predicted = run.clean_logits.argmax(1)
    chosen = []
    for i in range(len(rows.x)):
        likely = predicted == target[i]
        other = predicted != rows.y[i]
        candidates = (likely if bool(likely.any()) else other).nonzero()[:, 0]
        if not len(candidates):
            raise UsageError(
                "features can only be matched with those of images of other classes, and the run has none: "
                "attack more images at once"
            )
        distance = (run.x[candidates] - rows.x[i]).double().flatten(1).square().sum(1)
        nearest = distance.argsort(stable=True)
        chosen.append(candidates[nearest[int(rows.rank[i]) % restarts % len(candidates)]])
    return torch.stack(chosen)

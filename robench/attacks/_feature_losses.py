"""What attacks maximise inside a network: what its features tell of the image, and how far they have moved."""

import torch
from torch import Tensor

from robench.attacks._base import Rows
from robench.core.errors import UsageError
from robench.core.hsic import nhsic_shares


def information(x: Tensor, features: tuple[Tensor, ...], group: int) -> Tensor:
    """Each row's share of nHSIC(features, x) over its group, (S,); several layers are averaged.

    A group's shares sum to its nHSIC, so that the gradient of the sum is the nHSIC's.

    Args:
        x: points, (S, C, H, W); features: (S, ...) a layer.
        group: so many consecutive rows are a group.
    """
    points = x.unflatten(0, (-1, group))
    shares = [nhsic_shares(layer.unflatten(0, (-1, group)), points).flatten() for layer in features]
    return torch.stack(shares).mean(0)


def distances(features: tuple[Tensor, ...], reference: Tensor) -> Tensor:
    """The L2 distance of each layer's features from the reference's, (layers, S).

    Args:
        features: (S, ...) a layer.
        reference: (S, F), the layers' flattened, one after the other.
    """
    return torch.stack([(a - b).norm(dim=1) for a, b in _layers(features, reference)])


def relative_distance(features: tuple[Tensor, ...], reference: Tensor) -> Tensor:
    """The same in units of the reference's own length, averaged over the layers, (S,)."""
    parts = [(a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-12) for a, b in _layers(features, reference)]
    return torch.stack(parts).mean(0)


def _layers(features: tuple[Tensor, ...], reference: Tensor) -> list[tuple[Tensor, Tensor]]:
    flat = [layer.flatten(1) for layer in features]
    return list(zip(flat, reference.split([layer.shape[1] for layer in flat], 1), strict=True))


def themselves(run: Rows, rows: Rows) -> Tensor:
    """The place in the run of each row's own image, (S,)."""
    order = run.sample.argsort(stable=True)
    return order[torch.searchsorted(run.sample[order], rows.sample)]


def nearest_other_class(run: Rows, rows: Rows, target: Tensor, restarts: int) -> Tensor:
    """The image of the run that each row should be mistaken for, as an index, (S,).

    Of those that the surrogate takes for the class aimed at the nearest in pixels (L2), a later restart the
    next. Where there is none, of those it takes for any class but the label.

    Raises:
        UsageError: when it takes every image of the run for a row's label.
    """
    taken = run.clean_logits.argmax(1)
    chosen = []
    for i in range(len(rows.x)):
        likely = taken == target[i]
        other = taken != rows.y[i]
        among = (likely if bool(likely.any()) else other).nonzero()[:, 0]
        if not len(among):
            raise UsageError(
                "features can only be matched with those of images of other classes, and the run has none: "
                "attack more images at once"
            )
        far = (run.x[among] - rows.x[i]).double().flatten(1).square().sum(1)
        nearest = far.argsort(stable=True)
        chosen.append(among[nearest[int(rows.rank[i]) % restarts % len(among)]])
    return torch.stack(chosen)

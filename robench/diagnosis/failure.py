"""Indicators of attack failure: debugging and improving optimization of adversarial examples.

Pintor et al. 2022, arXiv 2106.09947. The six are those of its first version (silent success, break-point angle,
increasing loss, zero gradients, non-transferability), with the unconstrained attack of the later ones, which is a run
and stands in `runs`. Each is near 0 for a sound attack and near 1 for a failed one.

Two choices where text and published code differ: the break-point angle is |cos beta|, as in the code and as the text's
own reading (flat is bad) wants, not 1 - |cos beta|; steps are scaled so that the last one stands at 1.
"""

import torch
from torch import Tensor

from robench.diagnosis._base import OWN, PINTOR, Case, Indicator, share
from robench.diagnosis.paths import Paths
from robench.engine.result_warnings import ZERO_SHARE

# The paper gives no thresholds for these two. In its table 1 APGD scores 0.31 to 0.41 and 0.09 to 0.33, attacks with
# too few or too short steps 0.76 and 0.98, and one with noisy gradients 0.77.
ANGLE, INCREASE = 0.7, 0.5


def scaled(loss: Tensor) -> Tensor:
    """What the attack minimises, each row of (N, T) stretched to [0, 1]; a row that never changes is 0."""
    falling = -torch.nan_to_num(loss.double(), posinf=1e30, neginf=-1e30)
    low, high = falling.amin(1, keepdim=True), falling.amax(1, keepdim=True)
    return (falling - low) / (high - low).clamp_min(1e-300)


def break_point_angle(loss: Tensor) -> Tensor:
    """|cos beta| of the triangle of a loss's first point, its last, and the one furthest from their line, (N,).

    Args:
        loss: (N, T) float64, scaled; T at least 3.
    """
    n, steps = loss.shape
    along = torch.linspace(0, 1, steps, dtype=loss.dtype).expand(n, steps)
    points = torch.stack([along, loss], 2)
    first, last = points[:, :1], points[:, -1:]
    base = (last - first) / (last - first).norm(dim=2, keepdim=True)
    offset = points - first
    away = (offset - (offset * base).sum(2, keepdim=True) * base).norm(dim=2)
    # The ends are no corner.
    inner = away[:, 1:-1].argmax(1) + 1
    corner = points[torch.arange(n), inner]
    one, other = corner - first[:, 0], corner - last[:, 0]
    return ((one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))).abs()


def increasing_loss(loss: Tensor) -> Tensor:
    """The area under the steps on which the loss rises, put side by side, (N,); 0 where none does.

    Args:
        loss: (N, T), scaled.
    """
    areas = []
    for row in loss:
        rises = row[1:] > row[:-1]
        ends = torch.stack([row[1:][rises], row[:-1][rises]], 1).flatten()
        areas.append(
            torch.trapezoid(ends, torch.linspace(0, 1, len(ends), dtype=row.dtype)) if len(ends) else 0.0
        )
    return torch.as_tensor(areas, dtype=loss.dtype)


def indicators(case: Case, paths: Paths) -> list[Indicator]:
    """The five that are read off an attack's path, over the images that are classified rightly without it."""
    right = case.right.cpu()
    total, failed = int(right.sum()), right & paths.failed
    survivors = int(failed.sum())
    # A run asks the judge where the surrogate is fooled, and at the end.
    seen = (paths.wrong & paths.fooled).any(1) | paths.fooled_last
    silent = right & paths.fooled.any(1) & ~seen
    lost = right & paths.fooled.any(1) & ~paths.fooled_last
    loss = scaled(paths.loss[failed])
    angle = float(break_point_angle(loss).mean()) if survivors else None
    rising = float(increasing_loss(loss).mean()) if survivors else None
    before = paths.fooled.cummax(1).values
    zero = paths.vanished[right][~before[right]]
    surrogate = right & paths.wrong.any(1)
    refused = surrogate & paths.failed
    # One image is chance, as everywhere.
    untransferred = share(refused[surrogate]) if int(refused.sum()) > 1 else 0.0
    none = "no image survived, so there is no failed attack to look at"
    return [
        Indicator(
            "silent-success", "silent success", share(silent[right]), 0.0, PINTOR,
            f"in {int(silent.sum())} of {total} images a point of the path fools the defense and a run would not "
            f"have noticed (in {int(lost.sum())} the attack's own answer does not fool it)",
        ),
        Indicator(
            "not-converged", "break-point angle", angle, ANGLE, OWN,
            f"over {survivors} surviving images: near 1 the loss is a straight line, and steps are too few or too "
            "short" if survivors else none,
        ),
        Indicator(
            "noisy-loss", "increasing loss", rising, INCREASE, OWN,
            f"over {survivors} surviving images: near 1 the loss sways about its worst value, and gradients are noisy"
            if survivors else none,
        ),
        Indicator(
            "zero-gradients", "zero gradients", share(zero), ZERO_SHARE, OWN,
            f"{int(zero.sum())} of {zero.numel()} gradients before the first success vanish",
        ),
        Indicator(
            "non-transferable", "non-transferability", untransferred, 0.1, OWN,
            f"{int(refused.sum())} of {int(surrogate.sum())} images that fool what the attacker searched on do not "
            "fool the defense" + (", which is the same here" if case.surrogate_is_judge else ""),
        ),
    ]  # fmt: skip

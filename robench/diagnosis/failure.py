"""Indicators of attack failure: debugging and improving optimization of adversarial examples.

Pintor et al. 2022, arXiv 2106.09947. This module has the five of its first version (silent success, break-point angle,
increasing loss, zero gradients, non-transferability). The unconstrained attack of later versions is a run and is in
`runs`. Each indicator is near 0 for a sound attack and near 1 for a failed one.

Text and published code differ in two points. The break-point angle here is |cos beta|, as in the code and in line with
the text's statement that a flat curve is bad, not 1 - |cos beta|. Steps are scaled so that the last one is at 1.
"""

import torch
from torch import Tensor

from robench.diagnosis._base import OWN, PINTOR, Case, Indicator, share
from robench.diagnosis.paths import Paths
from robench.engine.result_warnings import ZERO_SHARE

# The paper has no thresholds for these two. In its table 1, APGD scores 0.31 to 0.41 and 0.09 to 0.33, attacks with too
# few or too short steps score 0.76 and 0.98, and an attack with noisy gradients scores 0.77.
ANGLE, INCREASE = 0.7, 0.5


def scaled(loss: Tensor) -> Tensor:
    """The negated loss, with each row of (N, T) scaled to [0, 1]; a constant row becomes 0."""
    falling = -torch.nan_to_num(loss.double(), posinf=1e30, neginf=-1e30)
    low, high = falling.amin(1, keepdim=True), falling.amax(1, keepdim=True)
    return (falling - low) / (high - low).clamp_min(1e-300)


def break_point_angle(loss: Tensor) -> Tensor:
    """|cos beta| at the point of a loss curve that is furthest from the line through its ends, (N,).

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
    # The ends are excluded.
    inner = away[:, 1:-1].argmax(1) + 1
    corner = points[torch.arange(n), inner]
    one, other = corner - first[:, 0], corner - last[:, 0]
    return ((one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))).abs()


def increasing_loss(loss: Tensor) -> Tensor:
    """The area under the steps on which the loss rises, placed side by side, (N,); 0 if the loss never rises.

    Args:
        loss: (N, T), scaled.
    """
    areas = []
    for row in loss:
        rises = row[1:] > row[:-1]
        ends = torch.stack([row[1:][rises], row[:-1][rises]], 1).flatten()
        along = torch.linspace(0, 1, len(ends), dtype=row.dtype)
        areas.append(torch.trapezoid(ends, along) if len(ends) else 0.0)
    return torch.as_tensor(areas, dtype=loss.dtype)


def indicators(case: Case, paths: Paths) -> list[Indicator]:
    """The five indicators of an attack's path, over the images that are classified correctly without it."""
    right = case.right.cpu()
    total, failed = int(right.sum()), right & paths.failed
    survivors = int(failed.sum())
    # A run queries the judge only where the surrogate is fooled, and at the end.
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
    # A single image may be chance.
    untransferred = share(refused[surrogate]) if int(refused.sum()) > 1 else 0.0
    none = "no image survived, so there is no failed attack to examine"
    over = f"over {survivors} surviving image{'s' * (survivors != 1)}"
    return [
        Indicator(
            "silent-success", "silent success", share(silent[right]), 0.0, PINTOR,
            f"in {int(silent.sum())} of {total} images a point of the path fools the defense but a run would miss it "
            f"(in {int(lost.sum())} the attack's final answer does not fool it)",
        ),
        Indicator(
            "not-converged", "break-point angle", angle, ANGLE, OWN,
            f"{over}: near 1 the loss is a straight line: too few or too short steps" if survivors else none,
        ),
        Indicator(
            "noisy-loss", "increasing loss", rising, INCREASE, OWN,
            f"{over}: near 1 the loss oscillates around its worst value: noisy gradients" if survivors else none,
        ),
        Indicator(
            "zero-gradients", "zero gradients", share(zero), ZERO_SHARE, OWN,
            f"{int(zero.sum())} of {zero.numel()} gradients before the first success vanish",
        ),
        Indicator(
            "non-transferable", "non-transferability", untransferred, 0.1, OWN,
            f"{int(refused.sum())} of {int(surrogate.sum())} images that fool the attacker's surrogate do not "
            "fool the defense" + (" (here both are the same)" if case.surrogate_is_judge else ""),
        ),
    ]  # fmt: skip

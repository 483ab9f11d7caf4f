"""Losses that gradient attacks maximize: functions of logits (S, K) and labels (S,), one value for each row.

The difference of logits ratio is from "Reliable evaluation of adversarial robustness with an ensemble of
diverse parameter-free attacks" (Croce & Hein 2020, arXiv 2003.01690, eqs. 5 and 6).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from robench.attacks._base import Rows
from robench.attacks._objective_types import OnLogits
from robench.core.errors import UsageError
from robench.threats.threat import Threat


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy -log softmax(logits)[y], shape (S,)."""
    return functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest wrong logit minus the logit of the label, (S,): positive where the classifier is fooled."""
    correct = logits.gather(1, y[:, None])[:, 0]
    return logits.scatter(1, y[:, None], -math.inf).amax(1) - correct


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (eq. 5), (S,). With two classes it is undefined, and the margin is returned."""
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio (eq. 6), (S,).

    With fewer than four classes it is undefined, and the difference of logits is returned. With three classes, the
    ratio to the remaining part of the denominator would be constant for the least likely class.
    """
    difference = margin_targeted(logits, y, target)
    if logits.shape[1] < 4:
        return difference
    top = logits.topk(4, dim=1).values
    return difference / (top[:, 0] - top[:, 2:].mean(1) + 1e-12)


def cross_entropy_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Negative cross-entropy of the target, log softmax(logits)[target], (S,)."""
    return -cross_entropy(logits, target)


def margin_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Logit of the target minus logit of the label, (S,)."""
    return (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]


UNTARGETED = {"ce": cross_entropy, "dlr": dlr, "margin": margin}
TARGETED = {"ce": cross_entropy_targeted, "dlr": dlr_targeted, "margin": margin_targeted}
# Number of classes from which each loss is defined as in its paper, (untargeted, targeted).
CLASSES_NEEDED = {"ce": (2, 2), "dlr": (3, 4), "margin": (2, 2)}


def check_loss(loss: str) -> None:
    """Raise UsageError for an unknown loss."""
    if loss not in UNTARGETED:
        raise UsageError(f'unknown loss "{loss}": expected one of {", ".join(UNTARGETED)}')


def objective(loss: str, target: Tensor | None = None) -> OnLogits:
    """The objective for a loss, targeted at `target` (S,) if given."""
    return OnLogits(UNTARGETED[loss]) if target is None else OnLogits(TARGETED[loss], (target,))


def normalize(direction: Tensor, norm: str) -> Tensor:
    """The direction of steepest ascent of unit norm for a gradient (S, ...): its sign in Linf, normalized in L2."""
    if norm == "Linf":
        return direction.sign()
    flat = direction.flatten(1)
    size = flat.square().sum(1).sqrt() + 1e-12
    return direction / size.view(-1, *[1] * (direction.dim() - 1))


def random_start(rows: Rows, problem, norm: str) -> Tensor:
    """A random point on the sphere of radius eps, clipped to [0, 1], as in AutoAttack."""
    shape = tuple(rows.x.shape[1:])
    stream, eps = problem.stream, problem.threat.eps
    if norm == "Linf":
        noise = 2 * stream.uniform(rows.sample, rows.rank, _START, shape) - 1
        noise = noise / noise.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
    else:
        noise = normalize(stream.normal(rows.sample, rows.rank, _START, shape), "L2")
    return (rows.x + eps * noise).clamp(0, 1)


# Random starts use a step that no iteration reaches.
_START = 0xFFFFFFFF


def ball(rows: Rows, eps: float) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of the Linf ball inside [0, 1], (S, C, H, W) each."""
    return (rows.x - eps).clamp_min(0), (rows.x + eps).clamp_max(1)


def into_l2_ball(x: Tensor, rows: Rows, eps: float) -> Tensor:
    """Project onto the L2 ball, then clip to [0, 1], which stays inside the ball."""
    delta = x - rows.x
    size = delta.flatten(1).square().sum(1).sqrt()
    factor = torch.clamp(eps / (size + 1e-12), max=1.0)
    return delta.mul_(factor.view(-1, 1, 1, 1)).add_(rows.x).clamp_(0, 1)


def into_ball(x: Tensor, rows: Rows, threat: Threat) -> Tensor:
    """Project onto the Linf or L2 ball inside [0, 1]."""
    if threat.norm == "Linf":
        return x.clamp(*ball(rows, threat.eps))
    return into_l2_ball(x, rows, threat.eps)

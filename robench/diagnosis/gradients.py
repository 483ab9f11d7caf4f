"""How reliable gradients are: whether another noise draw or a nearby point gives a similar direction.

Balduzzi et al. 2017, "The Shattered Gradients Problem" (arXiv 1702.08591). Athalye et al. 2018 (arXiv 1802.00420) use
it to detect gradient masking.
"""

import torch
from torch import Tensor
from torch.nn import functional

from robench.attacks._base import Rows
from robench.attacks._losses import normalize, objective
from robench.core.rng import Stream
from robench.diagnosis._base import OWN, Case, Indicator
from robench.engine.batched_model import pad

# Smallest cosine without a warning; distance of the nearby point as a share of the radius.
LEAST, NEARBY = 0.5, 1 / 16
DRAWS = 8


def gradients(case: Case, x: Tensor, draws: int, which: slice = slice(None)) -> Tensor:
    """Gradients of the margin, one per noise draw, (N, draws, pixels) float32 on the CPU.

    The margin does not saturate, while the cross-entropy of a confident network has almost no gradient.

    Args:
        x: points, one for each image of the case, or for each image in `which`.
    """
    lanes, parts = case.network.batch_size, []
    labels, samples = case.y[which], case.ids[which]
    for start in range(0, len(x), lanes):
        piece = slice(start, start + lanes)
        ids = pad(samples[piece], lanes)
        points, y = pad(x[piece], lanes), pad(labels[piece], lanes)
        rank = torch.zeros_like(ids)
        rows = Rows(points, y, points.new_zeros(lanes, 1), ids, rank, rank == 0)
        grads = [
            case.network.answer(points, objective("margin"), rows, 1, torch.full_like(ids, draw)).grad
            for draw in range(draws)
        ]
        parts.append(torch.stack(grads, 1).flatten(2)[: len(x[piece])].cpu())
    return torch.cat(parts)


def between_draws(grads: Tensor) -> Tensor:
    """The mean cosine between two draws' gradients, (N,) of (N, draws, pixels); zero gradients have cosine 0."""
    units = functional.normalize(grads.double(), dim=2)
    draws = units.shape[1]
    # |sum of units|^2 = the squares + the cosines of all pairs of different draws.
    cosines = units.sum(1).square().sum(1) - units.square().sum(2).sum(1)
    return cosines / (draws * (draws - 1))


def averaged(cosine: float, draws: int) -> float:
    """The cosine between two means over k = `draws` draws: k c / (1 + (k - 1) c), with c the cosine of two draws."""
    cosine = max(cosine, 0.0)
    return draws * cosine / (1 + (draws - 1) * cosine)


def indicator(case: Case) -> Indicator:
    """The cosine of two averaged gradients of a randomized defense, or of those at an image and a nearby point."""
    right = case.right

    def indicated(code: str, value: float | None, text: str) -> Indicator:
        return Indicator(code, "gradient cosine", value, LEAST, OWN, text, True)

    if not bool(right.any()):
        return indicated("shattered-gradients", None, "no image is classified correctly without an attack")
    if case.eot > 1:
        single = float(between_draws(gradients(case, case.x, DRAWS))[right.cpu()].mean())
        value = averaged(single, case.eot)
        text = (
            f"between two gradients averaged over {case.eot} draws, computed from {single:.2f} between two draws; a "
            "lower cosine calls for more draws"
        )
        return indicated("noisy-gradients", value, text)
    radius = NEARBY * case.threat.eps
    noise = Stream.of(case.seed, "diagnose", "beside").normal(
        case.ids, torch.zeros_like(case.ids), 0, tuple(case.x.shape[1:])
    )
    step = normalize(noise, "Linf" if case.threat.norm == "Linf" else "L2")
    if case.threat.norm == "L1":
        step = noise / noise.flatten(1).abs().sum(1).view(-1, 1, 1, 1)
    nearby = (case.x + radius * step).clamp(0, 1)
    pair = torch.cat([gradients(case, case.x, 1), gradients(case, nearby, 1)], 1)
    value = float(between_draws(pair)[right.cpu()].mean())
    text = (
        f"between the gradients at an image and at distance {radius:.2g}, mean over {int(right.sum())} images"
    )
    return indicated("shattered-gradients", value, text)

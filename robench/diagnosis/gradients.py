"""How far a gradient can be trusted: whether it points the same way again, in another draw or a little beside.

Balduzzi et al. 2017, "The Shattered Gradients Problem" (arXiv 1702.08591); as a sign of masked gradients, Athalye et
al. 2018 (arXiv 1802.00420).
"""

import torch
from torch import Tensor
from torch.nn import functional

from robench.attacks._base import Rows
from robench.attacks._losses import normalize, objective
from robench.core.rng import Stream
from robench.diagnosis._base import OWN, Case, Indicator
from robench.engine.batched_model import pad

# Of the gradient that the attack used; a nearby point lies this share of the radius away.
LEAST, NEARBY = 0.5, 1 / 16
DRAWS = 8


def gradients(case: Case, x: Tensor, draws: int, which: slice = slice(None)) -> Tensor:
    """The gradient of the margin, one a draw, (N, draws, pixels) float32 on the CPU.

    The margin does not saturate: a confident network's cross-entropy has next to no gradient.

    Args:
        x: points, one for each of the case's images, or those of them in `which`.
    """
    lanes, parts = case.network.batch_size, []
    labels, samples = case.y[which], case.ids[which]
    for start in range(0, len(x), lanes):
        piece = slice(start, start + lanes)
        ids = pad(samples[piece], lanes)
        points, y = pad(x[piece], lanes), pad(labels[piece], lanes)
        rows = Rows(
            points, y, points.new_zeros(lanes, 1), ids, torch.zeros_like(ids), torch.ones_like(ids) > 0
        )
        said = [
            case.network.answer(points, objective("margin"), rows, 1, torch.full_like(ids, draw)).grad
            for draw in range(draws)
        ]
        parts.append(torch.stack(said, 1).flatten(2)[: len(x[piece])].cpu())
    return torch.cat(parts)


def between_draws(grads: Tensor) -> Tensor:
    """The mean cosine between two draws' gradients, (N,) of (N, draws, pixels); zero gradients have cosine 0."""
    units = functional.normalize(grads.double(), dim=2)
    draws = units.shape[1]
    # |sum of units|^2 = the squares + all the cosines of unlike pairs.
    unlike = units.sum(1).square().sum(1) - units.square().sum(2).sum(1)
    return unlike / (draws * (draws - 1))


def averaged(cosine: float, draws: int) -> float:
    """The cosine between two means of `draws` draws, when two draws have `cosine`: k c / (1 + (k - 1) c)."""
    cosine = max(cosine, 0.0)
    return draws * cosine / (1 + (draws - 1) * cosine)


def indicator(case: Case) -> Indicator:
    """Randomised: the cosine of two gradients as the attack averages them; else of a point and one beside it."""
    right = case.right
    if not bool(right.any()):
        return Indicator(
            "shattered-gradients",
            "gradient cosine",
            None,
            LEAST,
            OWN,
            "no image is right without an attack",
            True,
        )
    if case.eot > 1:
        single = float(between_draws(gradients(case, case.x, DRAWS))[right.cpu()].mean())
        value = averaged(single, case.eot)
        text = (
            f"between two gradients averaged over {case.eot} draws, by the {single:.2f} between two draws; below it "
            "more draws are needed"
        )
        return Indicator("noisy-gradients", "gradient cosine", value, LEAST, OWN, text, True)
    radius = NEARBY * case.threat.eps
    noise = Stream.of(case.seed, "diagnose", "beside").normal(
        case.ids, torch.zeros_like(case.ids), 0, tuple(case.x.shape[1:])
    )
    step = normalize(noise, "Linf" if case.threat.norm == "Linf" else "L2")
    if case.threat.norm == "L1":
        step = noise / noise.flatten(1).abs().sum(1).view(-1, 1, 1, 1)
    beside = (case.x + radius * step).clamp(0, 1)
    pair = torch.cat([gradients(case, case.x, 1), gradients(case, beside, 1)], 1)
    value = float(between_draws(pair)[right.cpu()].mean())
    text = (
        f"between the gradients at an image and {radius:.2g} beside it, mean over {int(right.sum())} images"
    )
    return Indicator("shattered-gradients", "gradient cosine", value, LEAST, OWN, text, True)

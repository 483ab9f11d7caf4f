"""Signs of a failed evaluation: each a mark in the record, so that no number stands without its doubts."""

import torch
from torch import Tensor

from robench.attacks._base import Attack
from robench.attacks._objectives import CLASSES_NEEDED
from robench.engine.network import Network
from robench.engine.outcome import AttackCost, Mark
from robench.engine.watch import Counts

# More than 0.2 points (AutoAttack's own threshold), and more than one image that chance could explain.
_SQUARE_POINTS, _SQUARE_IMAGES = 0.002, 2
# Shares of bad rows, in the gradient attack that has fewest of them: first gradients that vanish, losses that never
# rise, losses that fall again, losses that still rise at the end (PGD's fixed step sways around its best: on sound
# networks many rows find a better point that late, APGD's few).
ZERO_SHARE, _FLAT_SHARE, _FALLEN_SHARE, _UNDONE_SHARE = 0.01, 0.05, 0.25, 0.5


def looks_random(network: Network, x: Tensor, ids: Tensor) -> bool:
    """Whether the same images get other logits the second time, beyond the last bits."""
    first, second = network.logits(x, ids), network.logits(x, ids)
    scale = first.abs().amax(1, keepdim=True).clamp_min(1e-6)
    return bool(((first - second).abs() > 1e-4 * scale).any())


def softmax_outputs(logits: Tensor) -> list[Mark]:
    """Outputs that are probabilities: losses on logits have nearly no gradient there."""
    probabilities = (logits.min() >= -1e-5) & (logits.max() <= 1 + 1e-5)
    probabilities &= ((logits.sum(1) - 1).abs() < 1e-5).all()
    if not bool(probabilities):
        return []
    return [Mark("softmax-outputs", "the outputs are probabilities: give logits, or gradients may vanish")]


def nonfinite_logits(count: int) -> list[Mark]:
    """NaN or infinite logits seen anywhere."""
    if not count:
        return []
    return [
        Mark("nonfinite-logits", f"NaN or infinite logits in {count} answers; NaN counts as a wrong answer")
    ]


def randomised(stochastic: bool, declared: bool, attacks: list[Attack], blind: bool) -> list[Mark]:
    """A randomised defense under attacks that see its draws (unless `blind`) and do not average over them."""
    marks = []
    if stochastic and not declared:
        marks.append(
            Mark("undeclared-randomness", "two calls on the same images differ; judged on several draws")
        )
    if stochastic and not blind and not any(getattr(attack, "eot", 1) > 1 for attack in attacks):
        marks.append(
            Mark(
                "deterministic-attack",
                "a randomised defense under attacks without EOT: run autoattack-rand as well",
            )
        )
    return marks


def few_classes(num_classes: int, attacks: list[Attack]) -> list[Mark]:
    """Losses or target counts that need more classes than there are."""
    needed = 0
    for attack in attacks:
        targets = getattr(attack, "targets", 0)
        if loss := getattr(attack, "loss", None):
            needed = max(needed, CLASSES_NEEDED[loss][targets > 0])
    if num_classes >= needed:
        return []
    text = (
        f"{num_classes} classes, and the difference of logits ratio needs {needed}: a plainer margin was used"
    )
    return [Mark("few-classes", text)]


def nonfinite_gradients(watched: list[Counts]) -> list[Mark]:
    """NaN or infinite gradients in any attack: it does not see where they are."""
    count = sum(each.broken for each in watched)
    if not count:
        return []
    return [Mark("nonfinite-gradients", f"NaN or infinite gradients in {count} answers; they count as zero")]


def zero_gradients(watched: list[Counts]) -> list[Mark]:
    """Rows whose first gradient vanishes, in the attack that has fewest of them."""
    found = _fewest([(each.vanished, each.gradients) for each in watched], ZERO_SHARE)
    return [
        Mark("zero-gradients", f"{bad} of {total} rows start with a zero gradient: it may be masked")
        for bad, total in found
    ]


def losses(watched: list[Counts]) -> list[Mark]:
    """Attacks that do not climb, do not stay up, or are not done, on the images that survive them."""
    flat = _fewest([(each.flat, each.ended) for each in watched], _FLAT_SHARE)
    fallen = _fewest([(each.fallen, each.ended) for each in watched], _FALLEN_SHARE)
    undone = _fewest([(each.undone, each.ended) for each in watched], _UNDONE_SHARE)
    said = (
        (flat, "loss-not-increasing", "no step raised the loss: gradients may mislead"),
        (fallen, "final-worse-than-best", "the loss fell again: the step may be too long"),
        (undone, "more-steps-help", "the loss still rose in the last tenth of the steps: give it more"),
    )
    return [
        Mark(code, f"in {bad} of {total} rows {text}") for found, code, text in said for bad, total in found
    ]


def _fewest(counts: list[tuple[int, int]], most: float) -> list[tuple[int, int]]:
    """The (bad, all) of the attack with the smallest share of bad rows, if that is more than `most`."""
    shares = [(bad / total, bad, total) for bad, total in counts if total]
    if not shares or min(shares)[0] <= most:
        return []
    return [min(shares)[1:]]


def square_wins(costs: list[AttackCost], n: int) -> list[Mark]:
    """Square, which sees no gradient, fooling what the gradient attacks before it could not."""
    for i, cost in enumerate(costs):
        won = costs[i - 1].survivors - cost.survivors
        if i and cost.spec.startswith("square") and won > _SQUARE_POINTS * n and won >= _SQUARE_IMAGES:
            text = f"Square fooled {won} images that survived the white-box attacks: gradients may be masked"
            return [Mark("square-beats-white-box", text)]
    return []


def count_nonfinite(logits: Tensor) -> int:
    """Rows with a NaN or infinite logit."""
    return int((~torch.isfinite(logits)).any(1).sum())

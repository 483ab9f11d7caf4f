"""Signs of a failed evaluation: each a mark in the record, so that no number stands without its doubts."""

import torch
from torch import Tensor

from robench.attacks._base import Attack
from robench.attacks._objectives import CLASSES_NEEDED
from robench.engine.network import Network
from robench.engine.outcome import AttackCost, Mark

# More than 0.2 points (AutoAttack's own threshold), and more than one image that chance could explain.
_SQUARE_POINTS, _SQUARE_IMAGES = 0.002, 2
# Share of rows with a gradient of exactly zero, in the gradient attack that has fewest of them.
_ZERO_SHARE = 0.01


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


def randomised(stochastic: bool, declared: bool, attacks: list[Attack]) -> list[Mark]:
    """A randomised defense under attacks that do not average over its draws."""
    marks = []
    if stochastic and not declared:
        marks.append(
            Mark("undeclared-randomness", "two calls on the same images differ; judged on several draws")
        )
    if stochastic and not any(getattr(attack, "eot", 1) > 1 for attack in attacks):
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


def zero_gradients(counts: list[tuple[int, int]]) -> list[Mark]:
    """Rows whose first gradient is exactly zero, (zero, all) for every gradient attack."""
    shares = [(zero / total, zero, total) for zero, total in counts if total]
    if not shares or min(shares)[0] <= _ZERO_SHARE:
        return []
    _, zero, total = min(shares)
    return [Mark("zero-gradients", f"{zero} of {total} rows start with a zero gradient: it may be masked")]


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

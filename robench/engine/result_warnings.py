"""Warnings of a failed evaluation, stored in the record so that every figure comes with them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robench.attacks._base import Attack
from robench.attacks._losses import CLASSES_NEEDED
from robench.core import specs
from robench.core.errors import RobenchError
from robench.engine.batched_model import Network, out_of_memory
from robench.engine.loss_monitor import LossStats
from robench.engine.outcome import AttackCost, ResultWarning
from robench.engine.tolerances import beyond_chance

# In L0 gradients guide less: on networks with sound gradients (two of digits, 69 images each) Sparse-RS fools up to 9
# points more than Sigma-zero.
_SPARSE_SHARE = 0.2
# Shares of bad rows, in the gradient attack that has fewest of them: first gradients that vanish, losses that never
# rise, losses that fall again, losses that still rise at the end (PGD's fixed step sways around its best: on sound
# networks many rows find a better point that late, APGD's few).
ZERO_SHARE, _FLAT_SHARE, _FALLEN_SHARE, _UNDONE_SHARE = 0.01, 0.05, 0.25, 0.5
# How far logits may change with the other images in a batch, as a share of the largest: in batches of one shape
# arithmetic is the same, in two shapes networks in half precision round differently.
_SAME_SHAPE, _OTHER_SHAPE = 1e-4, 1e-2
# Values or rows that show a range by more than chance; shares of log-probabilities that are cut off, and of outputs
# at the end of a tanh.
_ENOUGH, _CUT_SHARE, _SATURATED = 8, 0.01, 0.25
_ADVICE = "give logits, or gradients may vanish"


def looks_random(network: Network, x: Tensor, ids: Tensor) -> bool:
    """Whether the same images get other logits the second time, beyond the last bits."""
    first, second = network.logits(x, ids), network.logits(x, ids)
    scale = first.abs().amax(1, keepdim=True).clamp_min(1e-6)
    return bool(((first - second).abs() > 1e-4 * scale).any())


def batch_dependence(network: Network, x: Tensor, ids: Tensor, logits: Tensor) -> list[ResultWarning]:
    """Answers that depend on the other images of a batch: batch statistics or adaptation at test time.

    Half of the images are evaluated once more, at other places of a batch whose other rows are black and white.

    Args:
        x: (N, C, H, W), at most one batch, of a deterministic network.
        logits: (N, K), the network's answers to them.
    """
    rows = torch.arange(len(x), device=x.device).flip(0)[: (len(x) + 1) // 2]
    # A batch of one image has no other composition: there a batch of two is tried, whose rounding may differ.
    alone = network.batch_size == 1
    size = 2 if alone else network.batch_size
    others = torch.arange(size - len(rows), device=x.device) % len(x)
    batch, names = torch.cat([x[rows], (x[others] < 0.5).to(x)]), torch.cat([ids[rows], ids[others]])
    try:
        found = Network(network.model, size).logits(batch, names)[: len(rows)]
    except RobenchError:
        # A network for batches of a fixed size.
        return []
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return []
    expected = logits[rows.cpu()].to(found.device)
    scale = expected.abs().amax(1, keepdim=True).clamp_min(1e-6)
    most = float(((found - expected).abs() / scale).nan_to_num(0).max())
    if most <= (_OTHER_SHAPE if alone else _SAME_SHAPE):
        return []
    text = (
        f"logits change by up to {most:.2g} of the largest with the other images in a batch: results depend on "
        "the batch size and cannot be re-checked"
    )
    return [ResultWarning("batch-dependent", text)]


def squashed_outputs(logits: Tensor) -> list[ResultWarning]:
    """Outputs that are not logits but squashed to a range, where gradients nearly vanish: (N, K) of clean images."""
    low, high = float(logits.min()), float(logits.max())
    sums = logits.sum(1)
    total = float(sums.median())
    # Rounding in half precision takes less than 1 %. Sums other than 1 and 100 must be alike against what differs
    # within a row, and in more than a few rows, or it may be chance.
    apart = (sums - total).abs().max()
    usual = any(abs(total - each) <= 1e-2 * each for each in (1, 100))
    alike = len(logits) >= _ENOUGH and bool(apart <= 5e-2 * (logits.amax(1) - logits.amin(1)).mean())
    if low >= -1e-5 and total > 0 and (usual or alike) and bool(apart <= 1e-2 * total):
        scale = "" if abs(total - 1) <= 1e-2 else f", which sum to {total:.4g}"
        return [ResultWarning("softmax-outputs", f"the outputs are probabilities{scale}: {_ADVICE}")]
    sums = logits.double().exp().sum(1)
    if high <= 1e-4 and bool(((sums - 1).abs() <= 1e-2 + logits.shape[1] * math.exp(low)).all()):
        cut = int((logits <= low + 1e-3).sum())
        if cut > max(_CUT_SHARE * logits.numel(), 1):
            text = f"the outputs are log-probabilities, {cut} of {logits.numel()} cut off at {low:.4g}"
            return [ResultWarning("softmax-outputs", f"{text}: {_ADVICE}")]
    if logits.numel() < _ENOUGH:
        return []
    if low >= 0 and high <= 1:
        return [ResultWarning("bounded-outputs", f"all outputs lie in [0, 1], as of a sigmoid: {_ADVICE}")]
    saturated = (logits.abs() >= 1 - 1e-3).double().mean()
    if low >= -1 and high <= 1 and saturated >= _SATURATED:
        return [ResultWarning("bounded-outputs", f"all outputs lie in [-1, 1], as of a tanh: {_ADVICE}")]
    return []


def nonfinite_logits(count: int) -> list[ResultWarning]:
    """NaN or infinite logits seen anywhere."""
    if not count:
        return []
    return [
        ResultWarning(
            "nonfinite-logits", f"NaN or infinite logits in {count} answers; NaN counts as a wrong answer"
        )
    ]


def randomised(
    stochastic: bool, declared: bool, attacks: list[Attack], no_verdict_feedback: bool
) -> list[ResultWarning]:
    """A randomised defense under attacks that see its draws, unless the attacker has no feedback, without averaging."""
    warnings = []
    if stochastic and not declared:
        warnings.append(
            ResultWarning(
                "undeclared-randomness", "two calls on the same images differ; judged on several draws"
            )
        )
    if stochastic and not no_verdict_feedback and not any(attack.eot > 1 for attack in attacks):
        warnings.append(
            ResultWarning(
                "deterministic-attack",
                "a randomised defense under attacks without EOT: run autoattack-rand as well",
            )
        )
    return warnings


def few_classes(num_classes: int, attacks: list[Attack]) -> list[ResultWarning]:
    """Losses or target counts that need more classes than there are."""
    needed = max(
        (CLASSES_NEEDED.get(attack.loss, (0, 0))[attack.targets > 0] for attack in attacks), default=0
    )
    if num_classes >= needed:
        return []
    text = (
        f"{num_classes} classes, and the difference of logits ratio needs {needed}: a plainer margin was used"
    )
    return [ResultWarning("few-classes", text)]


def nonfinite_gradients(stats: list[LossStats]) -> list[ResultWarning]:
    """NaN or infinite gradients in any attack: it does not see where they are."""
    count = sum(each.broken for each in stats)
    if not count:
        return []
    return [
        ResultWarning(
            "nonfinite-gradients", f"NaN or infinite gradients in {count} answers; they count as zero"
        )
    ]


def zero_gradients(stats: list[LossStats]) -> list[ResultWarning]:
    """Rows whose first gradient vanishes, in the attack that has fewest of them."""
    found = _fewest([(each.vanished, each.gradients) for each in stats], ZERO_SHARE)
    return [
        ResultWarning("zero-gradients", f"{bad} of {total} rows start with a zero gradient: it may be masked")
        for bad, total in found
    ]


def losses(stats: list[LossStats]) -> list[ResultWarning]:
    """Attacks that do not climb, do not stay up, or are not done, on the images that survive them."""
    flat = _fewest([(each.flat, each.ended) for each in stats], _FLAT_SHARE)
    fallen = _fewest([(each.fallen, each.ended) for each in stats], _FALLEN_SHARE)
    undone = _fewest([(each.undone, each.ended) for each in stats], _UNDONE_SHARE)
    said = (
        (flat, "loss-not-increasing", "no step raised the loss: gradients may mislead"),
        (fallen, "final-worse-than-best", "the loss fell again: the step may be too long"),
        (undone, "more-steps-help", "the loss still rose in the last tenth of the steps: give it more"),
    )
    return [
        ResultWarning(code, f"in {bad} of {total} rows {text}")
        for found, code, text in said
        for bad, total in found
    ]


def _fewest(counts: list[tuple[int, int]], most: float) -> list[tuple[int, int]]:
    """The (bad, all) of the attack with the smallest share of bad rows, if that is more than `most`."""
    shares = [(bad / total, bad, total) for bad, total in counts if total]
    if not shares or min(shares)[0] <= most:
        return []
    return [min(shares)[1:]]


def gradient_free_wins(
    attacks: Sequence[Attack], costs: Sequence[AttackCost], norm: str, n: int
) -> list[ResultWarning]:
    """Attacks that see no gradient and still fool images that survived white-box attacks.

    Args:
        attacks, costs: of the suite, in order.
        norm: of the threat; n: images of the run.
    """
    share = 0.0 if norm in ("Linf", "L2", "L1") else _SPARSE_SHARE
    for i, (attack, cost) in enumerate(zip(attacks, costs, strict=True)):
        if not attack.gradient_free or all(before.gradient_free for before in attacks[:i]):
            continue
        won = costs[i - 1].survivors - cost.survivors
        if beyond_chance(won, n) and won > share * n:
            text = (
                f"{type(attack).__name__} fooled {won} images that survived the white-box attacks: gradients may be "
                "masked"
            )
            return [ResultWarning(f"{specs.parse(cost.spec).name}-beats-white-box", text)]
    return []


def count_nonfinite(logits: Tensor) -> int:
    """Rows with a NaN or infinite logit."""
    return int((~torch.isfinite(logits)).any(1).sum())

"""Warnings that an evaluation may have failed, stored in the record with its figures."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robench.attacks._base import Attack
from robench.attacks._losses import CLASSES_NEEDED
from robench.core import specs
from robench.core.errors import RobenchError
from robench.engine.backing_off import KINDS, out_of_memory
from robench.engine.batched_model import Network
from robench.engine.loss_monitor import LossStats
from robench.engine.outcome import AttackCost, ResultWarning
from robench.engine.run_state import RunState
from robench.engine.tolerances import beyond_chance

# Gradients are less informative in L0: on two networks for digits with useful gradients (69 images each), Sparse-RS
# fools up to 9 points more images than Sigma-zero.
_SPARSE_SHARE = 0.2
# Thresholds for the fraction of rows whose first gradient vanishes, whose loss never increases, whose loss decreases
# again, and whose loss still increases at the end. The gradient attack with the lowest fraction counts. The last
# threshold is high because PGD with a fixed step size oscillates: with useful gradients, many of its rows, but few of
# APGD's, still find a better point at the end.
ZERO_SHARE, _FLAT_SHARE, _FALLEN_SHARE, _UNDONE_SHARE = 0.01, 0.05, 0.25, 0.5
# Maximum change of logits with the other images in a batch, relative to the largest logit: for batches of one shape,
# where the arithmetic is the same, and of two shapes, where networks in half precision round differently.
_SAME_SHAPE, _OTHER_SHAPE = 1e-4, 1e-2
# Minimum number of values or rows to detect a range; minimum fraction of log-probabilities that are clipped, and of
# outputs at the ends of a tanh.
_MIN_VALUES, _CUT_SHARE, _SATURATED = 8, 0.01, 0.25
_ADVICE = "give logits, or gradients may vanish"


def looks_random(network: Network, x: Tensor, ids: Tensor) -> bool:
    """Whether the logits of the same images differ between two calls by more than rounding."""
    return _differ(network.logits(x, ids), network.logits(x, ids), _SAME_SHAPE)


def noise_depends_on_batch(network: Network, x: Tensor, ids: Tensor) -> bool:
    """Whether the noise of an image depends on its place in the batch, as that of torch's generators does.

    Args:
        network: a randomized network.
        x: at most one batch of images, (N, C, H, W).
        ids: ids of the samples, (N,).
    """
    # A network of its own, because these calls are not part of the run.
    network = Network(network.model, network.batch_size, network.precision, network.stream)
    return _differ(network.logits(x, ids), network.logits(x.flip(0), ids.flip(0)).flip(0), _OTHER_SHAPE)


def _differ(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Whether logits differ by more than a fraction of the largest of their row."""
    scale = first.abs().amax(1, keepdim=True).clamp_min(1e-6)
    return bool(((first - second).abs() > tolerance * scale).any())


def batch_dependence(network: Network, x: Tensor, ids: Tensor, logits: Tensor) -> list[ResultWarning]:
    """Warn of logits that depend on the other images of a batch: batch statistics or test-time adaptation.

    Half of the images are evaluated again, at other positions of a batch whose other rows are black-and-white images.

    Args:
        network: a deterministic network.
        x: at most one batch of images, (N, C, H, W).
        ids: ids of the samples, (N,).
        logits: the network's logits of the images, (N, K).
    """
    rows = torch.arange(len(x), device=x.device).flip(0)[: (len(x) + 1) // 2]
    # With a batch size of one, a batch of two is used, which may be rounded differently.
    is_single = network.batch_size == 1
    size = 2 if is_single else network.batch_size
    others = torch.arange(size - len(rows), device=x.device) % len(x)
    batch, batch_ids = torch.cat([x[rows], (x[others] < 0.5).to(x)]), torch.cat([ids[rows], ids[others]])
    try:
        changed = Network(network.model, size).logits(batch, batch_ids)[: len(rows)]
    except RobenchError:
        # The network only supports a fixed batch size.
        return []
    except KINDS as error:
        if not out_of_memory(error):
            raise
        return []
    expected = logits[rows.cpu()].to(changed.device)
    scale = expected.abs().amax(1, keepdim=True).clamp_min(1e-6)
    change = float(((changed - expected).abs() / scale).nan_to_num(0).max())
    if change <= (_OTHER_SHAPE if is_single else _SAME_SHAPE):
        return []
    text = (
        f"logits change by up to {change:.2g} of the largest with the other images in a batch: results depend on "
        "the batch size and cannot be re-checked"
    )
    return [ResultWarning("batch-dependent", text)]


def squashed_outputs(logits: Tensor) -> list[ResultWarning]:
    """Warn of outputs (N, K) on clean images that are not logits but have a limited range, where gradients vanish."""
    low, high = float(logits.min()), float(logits.max())
    sums = logits.sum(1)
    total = float(sums.median())
    # Rounding in half precision changes sums by less than 1 %. For sums other than 1 and 100, the sums must vary less
    # than the values within a row, in at least several rows, so that it is not chance.
    deviation = (sums - total).abs().max()
    is_common = any(abs(total - common) <= 1e-2 * common for common in (1, 100))
    is_constant = len(logits) >= _MIN_VALUES and bool(
        deviation <= 5e-2 * (logits.amax(1) - logits.amin(1)).mean()
    )
    if low >= -1e-5 and total > 0 and (is_common or is_constant) and bool(deviation <= 1e-2 * total):
        scale = "" if abs(total - 1) <= 1e-2 else f", which sum to {total:.4g}"
        return [ResultWarning("softmax-outputs", f"the outputs are probabilities{scale}: {_ADVICE}")]
    sums = logits.double().exp().sum(1)
    # The smallest of K probabilities is at most 1 / K.
    classes = logits.shape[1]
    is_log = high <= 1e-4 and low <= 1e-2 - math.log(classes)
    if is_log and bool(((sums - 1).abs() <= 1e-2 + classes * math.exp(low)).all()):
        cut = int((logits <= low + 1e-3).sum())
        if cut > max(_CUT_SHARE * logits.numel(), 1):
            text = f"the outputs are log-probabilities, {cut} of {logits.numel()} cut off at {low:.4g}"
            return [ResultWarning("softmax-outputs", f"{text}: {_ADVICE}")]
    if logits.numel() < _MIN_VALUES:
        return []
    if low >= 0 and high <= 1:
        return [ResultWarning("bounded-outputs", f"all outputs lie in [0, 1], as of a sigmoid: {_ADVICE}")]
    saturated = (logits.abs() >= 1 - 1e-3).double().mean()
    if low >= -1 and high <= 1 and saturated >= _SATURATED:
        return [ResultWarning("bounded-outputs", f"all outputs lie in [-1, 1], as of a tanh: {_ADVICE}")]
    return []


def nonfinite_logits(count: int) -> list[ResultWarning]:
    """Warn of NaN or infinite logits."""
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
    """Warn of undeclared randomness, and of a randomised defense that no attack averages over (EOT)."""
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
                "a randomized defense under attacks without EOT: run autoattack-rand as well",
            )
        )
    return warnings


def few_classes(num_classes: int, attacks: list[Attack]) -> list[ResultWarning]:
    """Warn of losses that need more classes than the defense has."""
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
    """Warn of NaN or infinite gradients in any attack."""
    count = sum(attack.broken for attack in stats)
    if not count:
        return []
    return [
        ResultWarning(
            "nonfinite-gradients", f"NaN or infinite gradients in {count} answers; they count as zero"
        )
    ]


def zero_gradients(stats: list[LossStats]) -> list[ResultWarning]:
    """Warn of rows whose first gradient vanishes, in the attack with the fewest of them."""
    counts = _fewest([(attack.vanished, attack.gradients) for attack in stats], ZERO_SHARE)
    return [
        ResultWarning("zero-gradients", f"{bad} of {total} rows start with a zero gradient: it may be masked")
        for bad, total in counts
    ]


def losses(stats: list[LossStats]) -> list[ResultWarning]:
    """Warn of attacks whose loss does not increase, decreases again, or still increases at the end, on survivors."""
    flat = _fewest([(attack.flat, attack.ended) for attack in stats], _FLAT_SHARE)
    fallen = _fewest([(attack.fallen, attack.ended) for attack in stats], _FALLEN_SHARE)
    undone = _fewest([(attack.undone, attack.ended) for attack in stats], _UNDONE_SHARE)
    warnings = (
        (flat, "loss-not-increasing", "no step raised the loss: gradients may mislead"),
        (fallen, "final-worse-than-best", "the loss fell again: the step may be too long"),
        (undone, "more-steps-help", "the loss still rose in the last tenth of the steps: use more steps"),
    )
    return [
        ResultWarning(code, f"in {bad} of {total} rows {text}")
        for counts, code, text in warnings
        for bad, total in counts
    ]


def _fewest(counts: list[tuple[int, int]], threshold: float) -> list[tuple[int, int]]:
    """The (bad, all) rows of the attack with the smallest fraction of bad rows, if it exceeds the threshold."""
    fractions = [(bad / total, bad, total) for bad, total in counts if total]
    if not fractions or min(fractions)[0] <= threshold:
        return []
    return [min(fractions)[1:]]


def outside_threat(stats: list[LossStats], costs: Sequence[AttackCost]) -> list[ResultWarning]:
    """Warn of an attack whose points fool the defense outside the threat model, where they do not count."""
    return [
        ResultWarning(
            "outside-threat",
            f"{cost.spec} fooled {counts.outside} rows outside the threat model, which does not count: an attack must "
            "stay inside it, or declare minimum_norm",
        )
        for counts, cost in zip(stats, costs, strict=True)
        if counts.outside
    ]


def gradient_free_wins(
    attacks: Sequence[Attack], costs: Sequence[AttackCost], norm: str, n: int
) -> list[ResultWarning]:
    """Warn of gradient-free attacks that fool images which survived white-box attacks.

    Args:
        attacks, costs: attacks of the suite and their costs, in order.
        norm: norm of the threat.
        n: number of images of the run.
    """
    threshold = 0.0 if norm in ("Linf", "L2", "L1") else _SPARSE_SHARE
    for i, (attack, cost) in enumerate(zip(attacks, costs, strict=True)):
        if not attack.gradient_free or all(before.gradient_free for before in attacks[:i]):
            continue
        fooled = costs[i - 1].survivors - cost.survivors
        if beyond_chance(fooled, n) and fooled > threshold * n:
            text = (
                f"{type(attack).__name__} fooled {fooled} images that survived the white-box attacks: gradients may be "
                "masked"
            )
            return [ResultWarning(f"{specs.parse(cost.spec).name}-beats-white-box", text)]
    return []


def of_attacks(attacks: list[Attack], state: RunState, num_classes: int, norm: str) -> list[ResultWarning]:
    """The warnings that follow from the results of all attacks."""
    return [
        *few_classes(num_classes, attacks),
        *nonfinite_gradients(state.stats),
        *zero_gradients(state.stats),
        *losses(state.stats),
        *outside_threat(state.stats, state.costs),
        *gradient_free_wins(attacks, state.costs, norm, len(state.draws)),
    ]


def count_nonfinite(logits: Tensor) -> int:
    """Count the rows with a NaN or infinite logit."""
    return int((~torch.isfinite(logits)).any(1).sum())

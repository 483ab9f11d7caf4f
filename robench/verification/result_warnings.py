"""Recompute the warnings of a record that need no gradient, and check that the record has them."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from robench.data._lazy_images import LazyImages
from robench.engine import result_warnings
from robench.engine.batched_model import Network
from robench.records.findings import Finding
from robench.verification.evidence import Evidence


def findings(e: Evidence, clean: Tensor, declared: bool) -> Iterator[Finding]:
    """Check that the record has every warning that its data raise.

    Args:
        clean: logits of the clean images (N, K), in the first noise draw of a randomised defense.
        declared: whether the defense declares itself randomised.
    """
    attacks = [attack for attack in e.attacks if attack is not None]
    raised = [
        *result_warnings.squashed_outputs(clean),
        *result_warnings.nonfinite_logits(result_warnings.count_nonfinite(clean)),
    ]
    # These warnings need every attack to be built here, and the costs of the unchanged suite.
    if len(attacks) == len(e.attacks) == len(e.record.attacks):
        raised += result_warnings.gradient_free_wins(attacks, e.record.attacks, e.threat.norm, e.record.job.n)
        raised += result_warnings.few_classes(clean.shape[1], attacks)
        raised += result_warnings.randomised(e.draws > 1, declared, attacks, not e.asks)
    recorded = {warning.code for warning in e.record.health}
    missing = [warning for warning in raised if warning.code not in recorded]
    detail = f"{len(raised)} warnings from logits, classes and survivors" + "".join(
        f"; {warning.code} is missing: {warning.text}" for warning in missing
    )
    yield Finding("health", not missing, detail)


def looks_random(
    model: Callable[[Tensor], Tensor], x: Tensor | LazyImages, ids: Tensor, lanes: int, device: torch.device
) -> bool:
    """Whether a model that does not declare itself randomised gives two answers for the same images."""
    with torch.inference_mode():
        return result_warnings.looks_random(
            Network(model, lanes, backs_off=True), x[:lanes].to(device), ids[:lanes].to(device)
        )

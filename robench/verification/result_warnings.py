"""The warnings of a record that need no gradient: they are looked for again, and must be there."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from robench.data._lazy_images import LazyImages
from robench.engine import result_warnings
from robench.engine.batched_model import Network
from robench.records.findings import Finding
from robench.verification.evidence import Evidence


def findings(e: Evidence, clean: Tensor, declared: bool) -> Iterator[Finding]:
    """Whether the record carries every warning that its own data raise.

    Args:
        clean: logits of the clean images (N, K), in the first draw of a randomised defense.
        declared: whether the defense says that it is randomised.
    """
    attacks = [attack for attack in e.attacks if attack is not None]
    raised = [
        *result_warnings.squashed_outputs(clean),
        *result_warnings.nonfinite_logits(result_warnings.count_nonfinite(clean)),
    ]
    # What an attack that cannot be built here does is not known, nor what costs are of a suite that was changed.
    if len(attacks) == len(e.attacks) == len(e.record.attacks):
        raised += result_warnings.gradient_free_wins(attacks, e.record.attacks, e.threat.norm, e.record.job.n)
        raised += result_warnings.few_classes(clean.shape[1], attacks)
        raised += result_warnings.randomised(e.draws > 1, declared, attacks, not e.asks)
    carried = {mark.code for mark in e.record.health}
    missing = [mark for mark in raised if mark.code not in carried]
    detail = f"{len(raised)} warnings by logits, classes and survivors" + "".join(
        f"; {mark.code} is missing: {mark.text}" for mark in missing
    )
    yield Finding("health", not missing, detail)


def looks_random(
    model: Callable[[Tensor], Tensor], x: Tensor | LazyImages, ids: Tensor, lanes: int, device: torch.device
) -> bool:
    """Whether a model that does not say so answers the same images in two ways."""
    with torch.inference_mode():
        return result_warnings.looks_random(
            Network(model, lanes), x[:lanes].to(device), ids[:lanes].to(device)
        )

"""The defense on the clean images: predictions, margins and warnings."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robench.core.errors import UsageError
from robench.engine import result_warnings
from robench.engine.attack_context import Samples
from robench.engine.batched_model import Network, answer
from robench.engine.outcome import ResultWarning
from robench.engine.setup import Parties, Setup
from robench.engine.tolerances import margins


@dataclass(frozen=True)
class CleanPass:
    """Of N images, on the CPU.

    Attributes:
        logits: (N, K), the surrogate's; margin: (N,), of the defense, see `Outcome.clean_margin`.
        shown, answers: (N, draws), what the judge of the search and the judge of clean images say.
        warnings: raised by the clean pass; nonfinite: number of images with NaN or infinite logits.
    """

    logits: Tensor
    margin: Tensor
    shown: Tensor
    answers: Tensor
    warnings: list[ResultWarning]
    nonfinite: int

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]


def clean_pass(setup: Setup, parties: Parties, samples: Samples) -> CleanPass:
    """Call defense and surrogate on every clean image.

    Raises:
        UsageError: when labels and classes do not fit.
    """
    device, size = setup.device, setup.batch_size

    def logits_of(network: Network) -> Tensor:
        parts = zip(samples.x.split(size), samples.ids.split(size), strict=True)
        return torch.cat([network.logits(x.to(device), ids.to(device)).cpu() for x, ids in parts])

    network = parties.judge.network
    logits, y = logits_of(network), samples.y
    if int(y.max()) >= logits.shape[1]:
        raise UsageError(
            f"labels lie in {int(y.min())}..{int(y.max())}: the defense has {logits.shape[1]} classes"
        )
    if logits.shape[1] < 2:
        raise UsageError("the defense has one class: an attack needs at least two")
    warnings = result_warnings.squashed_outputs(logits)
    if not setup.stochastic:
        x, ids = samples.x[:size].to(device), samples.ids[:size].to(device)
        warnings += result_warnings.batch_dependence(network, x, ids, logits[:size])
    # What an attack must beat is counted on the draws that it is shown; what is reported is not.
    if parties.judge.draws > 1:
        judges = parties.judges.search, parties.judges.clean
        shown, answers = (judge.answers_of(samples.x, samples.ids, device) for judge in judges)
    else:
        shown = answers = answer(logits)[:, None]
    return CleanPass(
        logits=logits if parties.surrogate_is_judge else logits_of(parties.surrogate),
        margin=margins(logits),
        shown=shown,
        answers=answers,
        warnings=warnings,
        nonfinite=result_warnings.count_nonfinite(logits),
    )

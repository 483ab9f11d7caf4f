"""The clean pass: predictions, margins and warnings on the clean images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from robench.core.errors import UsageError
from robench.core.transfer import sent
from robench.engine import result_warnings
from robench.engine.attack_context import Samples
from robench.engine.batched_model import Network, answer
from robench.engine.judges import SEARCH
from robench.engine.outcome import ResultWarning
from robench.engine.setup import Parties, Setup
from robench.engine.tolerances import margins


@dataclass(frozen=True)
class CleanPass:
    """The results of the clean pass on N images, on the CPU.

    Attributes:
        logits: logits of the surrogate, (N, K).
        margin: clean margins of the defense, (N,), see `Outcome.clean_margin`.
        shown: predictions of the judge of the search, (N, draws).
        answers: predictions of the judge of clean images, (N, draws).
        warnings: warnings of the clean pass.
        nonfinite: number of images with NaN or infinite logits.
        noise_depends_on_batch: whether the images cannot be split, because the model's noise depends on the batch.
        share: the share of each image, so that every process has the same ones; empty if the run is not split yet.
    """

    logits: Tensor
    margin: Tensor
    shown: Tensor
    answers: Tensor
    warnings: list[ResultWarning]
    nonfinite: int
    noise_depends_on_batch: bool = False
    share: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]


def clean_pass(setup: Setup, parties: Parties, samples: Samples) -> CleanPass:
    """Call the defense and the surrogate on every clean image.

    Raises:
        UsageError: if a label exceeds the number of classes, there is only one class, or the surrogate has others.
    """
    device, size = setup.device, setup.batch_size

    def logits_of(network: Network) -> Tensor:
        batches = zip(samples.x.split(size), samples.ids.split(size), strict=True)
        return torch.cat([network.logits(sent(x, device), ids.to(device)).cpu() for x, ids in batches])

    # Margins are of draws that are the same for every attacker.
    network = setup.network(SEARCH) if setup.attacker.knows_noise else parties.judge.network
    logits, y = logits_of(network), samples.y
    if int(y.max()) >= logits.shape[1]:
        raise UsageError(
            f"labels lie in {int(y.min())}..{int(y.max())}, but the defense has {logits.shape[1]} classes"
        )
    if logits.shape[1] < 2:
        raise UsageError("the defense has one class: an attack needs at least two")
    warnings = result_warnings.squashed_outputs(logits)
    x, ids = samples.x[:size].to(device), samples.ids[:size].to(device)
    if not setup.stochastic:
        warnings += result_warnings.batch_dependence(network, x, ids, logits[:size])
    # Attacks must fool more of the search's draws than the clean image does; the record reports other draws.
    if parties.judge.draws > 1:
        judges = parties.judges.search, parties.judges.clean
        shown, answers = (judge.answers_of(samples.x, samples.ids, device) for judge in judges)
    else:
        shown = answers = answer(logits)[:, None]
    searched = logits if parties.surrogate_is_judge else logits_of(parties.surrogate)
    if searched.shape[1] != logits.shape[1]:
        raise UsageError(
            f"the attacker's network has {searched.shape[1]} classes, and the attacked defense has {logits.shape[1]}: "
            "labels must have the same meaning in both"
        )
    return CleanPass(
        logits=searched,
        margin=margins(logits),
        shown=shown,
        answers=answers,
        warnings=warnings,
        nonfinite=result_warnings.count_nonfinite(logits),
        noise_depends_on_batch=setup.stochastic and result_warnings.noise_depends_on_batch(network, x, ids),
    )

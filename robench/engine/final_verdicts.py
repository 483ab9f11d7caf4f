"""The end of a run: the adversarial examples of all attacks are judged once more, and the outcome is built."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robench.data._lazy_images import LazyImages
from robench.engine import result_warnings
from robench.engine.batched_model import vote
from robench.engine.outcome import Outcome
from robench.engine.outputs import adversarials, distances
from robench.engine.run_state import CLEAN, NOISE, ROBUST

if TYPE_CHECKING:
    from robench.engine.run import Run


def final_outcome(run: "Run") -> Outcome:
    """Judge the adversarial examples of a finished run and build its outcome."""
    samples, state, threat, size = run.samples, run.state, run.threat, run.setup.batch_size
    winners = state.fooled_by.tolist()
    rows = [i for i, index in enumerate(winners) if index >= 0]
    points, x_adv = adversarials(
        threat,
        samples,
        rows,
        lambda i: state.examples[winners[i]][i],
        device=run.device,
        batch_size=size,
    )
    answers, draws, fooled_by = _verdicts(run, x_adv, torch.tensor(rows, dtype=torch.int64))
    names = {CLEAN: "clean", ROBUST: "", NOISE: "noise"} | dict(enumerate(spec for spec, _ in run.attacks))
    randomised = run.parties.judge.draws > 1
    attacks, no_feedback = [attack for _, attack in run.attacks], run.setup.attacker.no_verdict_feedback
    return Outcome(
        x_adv=x_adv,
        points=points if threat.name else None,
        robust=fooled_by == ROBUST,
        fooled_by=[names[int(code)] for code in fooled_by],
        clean_prediction=vote(run.clean.answers),
        prediction=vote(answers),
        clean_margin=run.clean.margin,
        clean_draws=(run.clean.answers != samples.y[:, None]).sum(1),
        draws=draws,
        of_draws=run.parties.judge.draws,
        distance=distances(threat, samples.x, points, size),
        steps=state.steps,
        forward=state.forward,
        backward=state.backward,
        attacks=[replace(cost) for cost in state.costs],
        rows=dict(zip(("forward", "backward"), state.rows, strict=True)),
        health=[
            *run.clean.warnings,
            *result_warnings.nonfinite_logits(run.clean.nonfinite + state.nonfinite),
            *result_warnings.randomised(run.setup.stochastic, run.declared, attacks, no_feedback),
            *result_warnings.of_attacks(attacks, state, run.clean.num_classes, threat.norm),
        ],
        precision=run.setup.precision,
        batch_size=run.state.batch_size,
        search=run.setup.search(sum(stats.disagreed for stats in state.stats)),
        clean_answers=run.clean.answers if randomised else None,
        answers=answers if randomised else None,
        single_draw_accuracy=float((answers[:, 0] == samples.y).double().mean()) if randomised else None,
    )


def _verdicts(run: "Run", x_adv: Tensor | LazyImages, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Judge the final candidates.

    Args:
        rows: samples with a candidate, (M,) int64; for the others the clean image is reported.

    Returns:
        The predictions (N, draws), the number of wrong ones (N,), and the attack that fooled each sample (N,). For
        a randomised defense these use the new draws: a candidate that fools none of them does not count.
    """
    state, answers = run.state, run.clean.answers.clone()
    answers[rows] = run.parties.judges.final.answers_of(x_adv, run.samples.ids[rows], run.device, rows)
    if run.parties.judge.draws == 1:
        return answers, state.draws, state.fooled_by
    wrong = (answers != run.samples.y[:, None]).sum(1)
    fooled_by = torch.where((state.fooled_by >= 0) & (wrong == 0), ROBUST, state.fooled_by)
    # Classified correctly in most draws but not in all, and no attack fooled more draws.
    return answers, wrong, torch.where((fooled_by == ROBUST) & (wrong > 0), NOISE, fooled_by)

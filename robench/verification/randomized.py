"""Verify the record of a randomized defense on the same noise draws, which depend on seed, sample and draw."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from robench.data._lazy_images import LazyImages
from robench.engine.batched_model import Model, vote
from robench.engine.judges import Judges
from robench.records import randomized
from robench.records.certificates import is_attacked
from robench.records.findings import Finding, rows_hold
from robench.threats.knowledge import Knowledge
from robench.verification.evidence import Evidence


def findings(
    e: Evidence, model: Model, x_adv: Tensor | LazyImages, device: torch.device
) -> Iterator[Finding]:
    """Repeat the draws that the record was judged on. The last finding says what they prove.

    Args:
        model: the defense, on `device`.
        x_adv: adversarial images (M, C, H, W) of the samples that have a certificate.
    """
    record, rows, images, certified = e.record, e.rows, e.images, e.attacked
    count = record.extra[randomized.FIELD]["draws"]
    fresh = not randomized.chosen_on(record)
    judges = Judges.of(model, record.job.batch_size, record.job.seed, True, fresh, backs_off=True)

    clean = judges.clean.answers_of(images.x, images.ids, device)
    final = clean.clone()
    final[certified] = judges.final.answers_of(x_adv, images.ids[certified], device)
    if count != clean.shape[1]:
        yield Finding(f"{randomized.FIELD}.draws", False, f"{clean.shape[1]} draws decide a verdict")
        return
    yield from _verdicts(rows, certified)
    for column, name, answers in (("clean_draws", "clean", clean), ("draws", "robust", final)):
        wrong = (answers != images.y[:, None]).sum(1).tolist()
        # Another device rounds logits differently, which may change a draw on the decision boundary.
        broken = [i for i, (a, b) in enumerate(zip(rows[column], wrong, strict=True)) if abs(a - b) > 1]
        detail = f"number of wrong answers in {count} draws, give or take one for a tie"
        yield rows_hold(f"samples.{column}", broken, detail)
        if fresh:
            yield from _answers(e, randomized.ANSWERS[name], column, answers)
    wrong = (final != images.y[:, None]).sum(1)
    worst = 100 * int((wrong == 0).sum()) / len(images)
    average = 100 * (1 - float(wrong.double().mean()) / count)
    chosen = "draws, the same ones that the candidates were chosen on (see robench results migrate)"
    known = Knowledge.of(record.job.knowledge).level.knows_noise
    description = ("draws that the attacker knew" if known else "fresh draws") if fresh else chosen
    detail = f"at most {worst:.2f} % in the worst of {count} {description}, and {average:.2f} % on average"
    proven = f"robust accuracy is {detail}, on these {len(images)} images"
    yield Finding("robust_accuracy", True, f"on these {len(images)} images it is {detail}", proven=proven)


def _verdicts(rows: dict[str, list[Any]], certified: list[int]) -> Iterator[Finding]:
    """Check `fooled_by` against each sample's draws and certificate."""
    certificates, broken = set(certified), []
    for i, (by, wrong) in enumerate(zip(rows["fooled_by"], rows["draws"], strict=True)):
        if by == "clean":
            holds = rows["clean_prediction"][i] != rows["label"][i]
        elif is_attacked(by):
            holds = wrong > 0 and i in certificates
        else:
            holds = (wrong > 0) == (by == "noise") and not (by == "noise" and i in certificates)
        if not holds:
            broken.append(i)
    yield rows_hold("samples.fooled_by", broken, "from the draws of each sample")


def _answers(e: Evidence, name: str, column: str, now: Tensor) -> Iterator[Finding]:
    """Check the answer to each draw against the recorded counts, the recorded vote and the answers given now."""
    rows = e.rows
    then = torch.tensor(rows[name])
    if then.shape != now.shape:
        yield Finding(f"samples.{name}", False, f"{now.shape[1]} draws decide a verdict")
        return
    label = torch.tensor(rows["label"])
    wrong = (then != label[:, None]).sum(1) != torch.tensor(rows[column])
    prediction = "clean_prediction" if name == randomized.ANSWERS["clean"] else "prediction"
    wrong |= vote(then) != torch.tensor(rows[prediction])
    detail = f"the wrong answers match {column}, the vote matches {prediction}"
    yield rows_hold(f"samples.{name}", _indices(wrong), detail, f"samples.{prediction}")
    changed, exists = then != now, (then >= 0) & (then < len(e.images.classes))
    broken = _indices((changed.sum(1) > 1) | (changed & ~exists).any(1))
    detail = "the answer to each draw, except one class per sample on the decision boundary"
    yield rows_hold(f"samples.{name}", broken, detail)


def _indices(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()

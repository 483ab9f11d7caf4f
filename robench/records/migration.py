"""Migrate old records to the current rules, with forward passes alone.

Two rules have changed. A randomized defense is now judged on fresh draws instead of the draws that its candidates were
chosen on. A certificate may now exceed the radius by a millionth, while L2 and L1 allowed ten times as much. Neither
change needs an attack: the certificates of a record are judged again.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench.core.errors import CheckFailed
from robench.core.io import claim
from robench.data._base import Images
from robench.defenses import Loaded
from robench.engine.attack_context import Samples
from robench.engine.batched_model import Judge, frozen, vote
from robench.engine.judges import Judges
from robench.engine.outcome import Outcome, ResultWarning
from robench.engine.outputs import adversarials, distances
from robench.records import certificates, randomized, samples
from robench.records.record import Record, read_record
from robench.records.store import write_files
from robench.statistics.accuracy import Accuracy
from robench.threats.threat import Threat


@dataclass(frozen=True)
class _Old:
    """An old record: `rows` are the samples with a certificate, `points` their adversarial points."""

    record: Record
    columns: dict[str, list[Any]]
    rows: list[int]
    points: Tensor
    outside: Tensor

    @property
    def threat(self) -> Threat:
        return self.record.job.threat_model


def overdue(record: Record, images: Images) -> list[str]:
    """The reasons to migrate a record, one line each; empty if there are none.

    Raises:
        ResourceError: when a file of the record is missing or damaged.
    """
    if record.corrupted:
        return []
    outside = int(_read(record, images).outside.sum())
    reasons = []
    if randomized.chosen_on(record):
        reasons.append("judged on the draws that its candidates were chosen on")
    if outside:
        reasons.append(
            f"{outside} stored adversarial examples exceed the radius by more than a millionth of it"
        )
    return reasons


def migrate(folder: Path | str, loaded: Loaded, images: Images, device: torch.device | str = "cpu") -> Record:
    """Judge a record's certificates again and write the result. The old record is kept under `superseded/`.

    Args:
        folder: the folder of the record.
        loaded: the defense that the record names, on `device`.
        images: the images of the record's dataset, split and n.

    Returns:
        The new record, or the old one if no migration is needed.

    Raises:
        CheckFailed: when the defense or the images differ, or a certificate inside the ball no longer fools the
            defense. The record is then unchanged.
        ResourceError: when a file is missing or damaged, or the folder cannot be written.
    """
    device = torch.device(device)
    with claim(Path(folder)), frozen(loaded.defense):
        record = read_record(folder)
        if not overdue(record, images):
            return record
        recorded, actual = record.job.defense.checkpoint_sha256, loaded.checkpoint_sha256
        if (recorded, record.job.dataset.digest) != (actual, images.digest):
            raise CheckFailed(
                f"{folder} is a record of other weights or images than those loaded here: it is not changed"
            )
        old, job = _read(record, images), record.job
        stochastic = randomized.FIELD in record.extra
        judges = Judges.of(loaded.defense, job.batch_size, job.seed, stochastic, backs_off=True)
        points = _inside(old, images, judges.final, device)
        judge_again = _judged_again if randomized.chosen_on(record) else _as_before
        return _write(Path(folder), record, judge_again(old, images, points, judges, device), images)


def _read(record: Record, images: Images) -> _Old:
    folder = record.folder or Path()
    threat = record.job.threat_model
    if record.job.n != len(images):
        raise CheckFailed(f"{folder} has adversarial examples of other images than those loaded here")
    kept = certificates.certificates_of(folder, images, threat)
    place = {sample: i for i, sample in enumerate(images.ids.tolist())}
    rows = [place[sample] for sample in kept.ids.tolist()]
    x = images.x[rows]
    points = threat.moved(x, kept.delta[:]) if rows else threat.origin(images.x[:1])[:0]
    outside = ~threat.contains(x, points) if rows else torch.zeros(0, dtype=torch.bool)
    return _Old(record, samples.read_samples(folder).to_pydict(), rows, points, outside)


def _inside(old: _Old, images: Images, judge: Judge, device: torch.device) -> Tensor:
    """The points, with those outside projected onto the ball: in whole grains if these fool the defense, else exactly.

    Raises:
        CheckFailed: naming the samples on which neither projection fools the defense.
    """
    points, threat = old.points.clone(), old.threat
    left = old.outside.nonzero().flatten().tolist()
    if not left:
        return points
    x = images.x[[old.rows[i] for i in left]]
    factor = threat.eps / threat.distance(x, points[left])
    delta = (points[left] - threat.origin(x)).double() * factor.view(-1, *[1] * (points.dim() - 1))
    drawn = (threat.origin(x) + delta).float()
    for written in (threat.rounded, threat.as_recorded):
        rows = [old.rows[i] for i in left]
        kept = written(images.x[rows], drawn)
        image = _images(threat, images, rows, kept, device)
        wrong = (judge.answers_of(image, images.ids[rows], device) != images.y[rows, None]).any(1)
        wrong &= threat.contains(images.x[rows], kept)
        done = wrong.tolist()
        for i, point, fools in zip(left, kept, done, strict=True):
            if fools:
                points[i] = point
        keep = [k for k, fools in enumerate(done) if not fools]
        left, drawn = [left[k] for k in keep], drawn[keep]
        if not left:
            return points
    named = ", ".join(str(int(images.ids[old.rows[i]])) for i in left[:5])
    raise CheckFailed(
        f"{old.record.folder}: {len(left)} stored adversarial examples (images {named}) do not fool the defense inside "
        f"{threat}: repeat the run with --fresh"
    )


def _images(threat: Threat, images: Images, rows: list[int], points: Tensor, device: torch.device) -> Tensor:
    return threat.image(images.x[rows].to(device), points.to(device), images.ids[rows].to(device)).cpu()


def _as_before(old: _Old, images: Images, points: Tensor, judges: Judges, device: torch.device) -> Outcome:
    """The outcome of a deterministic defense. Its verdicts are unchanged, because every certificate still fools it."""
    prediction = torch.tensor(old.columns["prediction"])
    rows = [row for row, outside in zip(old.rows, old.outside.tolist(), strict=True) if outside]
    x_adv = _images(old.threat, images, rows, points[old.outside], device)
    prediction[rows] = vote(judges.final.answers_of(x_adv, images.ids[rows], device))
    return _outcome(
        old, images, old.rows, points, device, judges.final.network.batch_size,
        fooled_by=old.columns["fooled_by"],
        clean_prediction=torch.tensor(old.columns["clean_prediction"]),
        prediction=prediction,
        clean_draws=torch.tensor(old.columns["clean_draws"]),
        draws=torch.tensor(old.columns["draws"]),
    )  # fmt: skip


def _judged_again(old: _Old, images: Images, points: Tensor, judges: Judges, device: torch.device) -> Outcome:
    """The outcome of a randomized defense on fresh draws.

    A sample was not attacked if most draws of the search misclassified its clean image. Most fresh draws may
    classify it correctly. A warning states the number of such samples.
    """
    labels = images.y
    clean = judges.clean.answers_of(images.x, images.ids, device)
    correct = vote(clean) == labels
    kept = [i for i, row in enumerate(old.rows) if correct[row]]
    rows, points = [old.rows[i] for i in kept], points[kept]
    answers = clean.clone()
    x_adv = _images(old.threat, images, rows, points, device)
    answers[rows] = judges.final.answers_of(x_adv, images.ids[rows], device)
    wrong = (answers != labels[:, None]).sum(1)
    attacked = set(rows)
    fooled_by = [
        "clean" if not correct[i] else "" if not wrong[i] else by if i in attacked else "noise"
        for i, by in enumerate(old.columns["fooled_by"])
    ]
    skipped = sum(by == "clean" and bool(correct[i]) for i, by in enumerate(old.columns["fooled_by"]))
    return _outcome(
        old, images, rows, points, device, judges.final.network.batch_size,
        health=[ResultWarning(NOT_ATTACKED, _SPARED.format(skipped))] if skipped else [],
        fooled_by=fooled_by,
        clean_prediction=vote(clean),
        prediction=vote(answers),
        clean_draws=(clean != labels[:, None]).sum(1),
        draws=wrong,
        of_draws=clean.shape[1],
        clean_answers=clean,
        answers=answers,
    )  # fmt: skip


def _outcome(
    old: _Old,
    images: Images,
    rows: list[int],
    points: Tensor,
    device: torch.device,
    batch_size: int,
    **fields: Any,
) -> Outcome:
    place = {row: i for i, row in enumerate(rows)}
    samples = Samples(images.x, images.y, images.ids)
    everywhere, x_adv = adversarials(
        old.threat, samples, rows, lambda row: points[place[row]], device=device, batch_size=batch_size
    )
    column = {name: torch.tensor(values) for name, values in old.columns.items() if name in _KEPT}
    attacked = torch.zeros(len(images), dtype=torch.bool)
    attacked[rows] = True
    column["steps"] = torch.where(attacked, column["steps"], 0)
    return Outcome(
        x_adv=x_adv,
        points=everywhere if old.threat.name else None,
        robust=torch.tensor([by == "" for by in fields["fooled_by"]]),
        distance=distances(old.threat, images.x, everywhere, batch_size),
        attacks=list(old.record.attacks),
        **column,
        **fields,
    )


NOT_ATTACKED = "not-attacked"
_SPARED = (
    "{} of the images were not attacked, because the clean image was misclassified in most draws of the search, "
    "although most fresh draws classify it correctly: an attack on them may lower the figures"
)
# Columns that do not depend on the judge.
_KEPT = ("clean_margin", "steps", "forward", "backward")


def _write(folder: Path, record: Record, outcome: Outcome, images: Images) -> Record:
    n = len(images)
    columns = {"label": images.y.tolist()}
    if outcome.answers is not None:
        for name in ("clean_prediction", "prediction", "clean_draws", "draws", *randomized.ANSWERS.values()):
            columns[name] = getattr(outcome, name).tolist()
    extra = dict(record.extra)
    if outcome.of_draws > 1:
        extra[randomized.FIELD] = randomized.figures(columns, outcome.of_draws)
    migrated = replace(
        record,
        clean_accuracy=Accuracy.of(sum(by != "clean" for by in outcome.fooled_by), n),
        robust_accuracy=Accuracy.of(int(outcome.robust.sum()), n),
        health=(*record.health, *outcome.health),
        extra=extra,
    )
    contents = {
        samples.FILE: samples.encode(outcome, images),
        certificates.FILE: certificates.encode(outcome, images, record.job.threat_model),
    }
    return write_files(folder, migrated, contents)

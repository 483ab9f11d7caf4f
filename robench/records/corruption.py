"""Records of runs under corruptions, in the common schema."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robench.corruption.make import JPEG, enlargement, library
from robench.corruption.suite import Cell, cells, corruptions
from robench.data._base import Images
from robench.engine import corruption_run as engine
from robench.engine import result_warnings
from robench.engine.outcome import AttackCost, Outcome
from robench.records import samples
from robench.records.record import Job, Record
from robench.records.samples import read_samples
from robench.records.store import write_files
from robench.statistics.corruption import Verdicts, accuracies, figures, first_wrong, normaliser


def verdicts(images: Images, found: engine.Outcome, asked: Sequence[Cell]) -> Verdicts:
    """Which images are classified correctly, clean and under every corruption and severity."""
    clean = (found.clean == images.y).numpy()
    return Verdicts(tuple(asked), clean, (found.predictions == images.y[:, None]).numpy())


def of_record(record: Record) -> Verdicts:
    """The same from the files of a record.

    Raises:
        ResourceError: when samples.parquet is missing or damaged.
    """
    rows = read_samples(record.folder or Path()).to_pydict()
    label = np.array(rows["label"])
    clean = np.array(rows["clean_prediction"]) == label
    asked = cells(corruptions(record.job.suite.attacks))
    return Verdicts(tuple(asked), clean, np.array(rows["corrupted"]) == label[:, None])


def outcome(job: Job, images: Images, found: engine.Outcome) -> tuple[Outcome, dict[str, Any]]:
    """The outcome in terms of attacks, and the fields that a record under corruptions adds."""
    asked = cells(corruptions(job.suite.attacks))
    return _outcome(job, images, found, asked), extra(job, images, found, asked)


def write(folder: Path, record: Record, outcome: Outcome, images: Images, found: engine.Outcome) -> Record:
    """Write a record under corruptions and its samples into `folder`, each file whole, record.json last.

    Raises:
        ResourceError: when the disk is full or the folder cannot be written.
    """
    return write_files(folder, record, {samples.FILE: samples.encode(outcome, images, found.predictions)})


def extra(job: Job, images: Images, found: engine.Outcome, asked: Sequence[Cell]) -> dict[str, Any]:
    """The fields that a run under corruptions adds."""
    right = verdicts(images, found, asked)
    height, width = images.x.shape[2:]
    fields = {
        "library": library(),
        "jpeg": dict(JPEG) if asked[0].jpeg else None,
        "enlarged": enlargement(height, width),
        "draws": 1,
        "accuracy": shown_accuracies(right),
        "pixels": pixels(found, asked),
    }
    return {"corruptions": fields, **figures(right, normaliser(job.dataset.name, width), job.seed)}


def shown_accuracies(right: Verdicts) -> dict[str, dict[str, Any]]:
    """Accuracy by corruption and severity, as stored in a record."""
    return {
        name: {k: asdict(share) | {"interval": list(share.interval)} for k, share in by_severity.items()}
        for name, by_severity in accuracies(right).items()
    }


def pixels(found: engine.Outcome, asked: Sequence[Cell]) -> dict[str, dict[str, str]]:
    """sha256 over the digests of the chunks, by corruption and severity."""
    digests: dict[str, dict[str, str]] = {}
    for number, cell in enumerate(asked):
        digest = hashlib.sha256(found.pixels[:, number].contiguous().numpy().tobytes()).hexdigest()
        digests.setdefault(cell.name, {})[str(cell.severity)] = digest
    return digests


def _outcome(job: Job, images: Images, found: engine.Outcome, asked: Sequence[Cell]) -> Outcome:
    """The outcome in terms of attacks: a corruption fools an image that is classified correctly without it."""
    right, n = verdicts(images, found, asked), len(images)
    fooled_by, place = first_wrong(right, job.suite.attacks)
    at = torch.from_numpy(place)
    fooled_prediction = found.predictions.gather(1, at.clamp_min(0)[:, None]).squeeze(1)
    zeros = torch.zeros(n, dtype=torch.int64)
    wrong = found.clean != images.y
    costs = []
    for name, spec in zip(right.names, job.suite.attacks, strict=True):
        columns = [i for i, cell in enumerate(asked) if cell.name == name]
        survivors = int(right.corrupted[:, columns].all(1).sum())
        spent = float(found.seconds[columns].sum())
        costs.append(AttackCost(spec, n, survivors, n * len(columns), 0, spent))
    nonfinite = int((found.predictions < 0).sum() + (found.clean < 0).sum())
    return Outcome(
        x_adv=images.x,
        robust=torch.tensor([name == "" for name in fooled_by]),
        fooled_by=fooled_by,
        clean_prediction=found.clean,
        prediction=torch.where(at < 0, found.clean, fooled_prediction),
        clean_margin=found.margin,
        clean_draws=wrong.long(),
        draws=torch.tensor([int(name != "") for name in fooled_by]),
        distance=torch.zeros(n, dtype=torch.float64),
        steps=zeros,
        forward=zeros + len(asked) + 1,
        backward=zeros,
        attacks=costs,
        health=result_warnings.nonfinite_logits(nonfinite),
        precision=job.precision,
        batch_size=found.batch_size,
    )

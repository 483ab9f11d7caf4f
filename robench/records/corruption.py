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


def verdicts(images: Images, run: engine.Outcome, suite_cells: Sequence[Cell]) -> Verdicts:
    """Which images are classified correctly, clean and under every corruption and severity."""
    clean = (run.clean == images.y).numpy()
    return Verdicts(tuple(suite_cells), clean, (run.predictions == images.y[:, None]).numpy())


def of_record(record: Record) -> Verdicts:
    """The verdicts in the files of a record.

    Raises:
        ResourceError: when samples.parquet is missing or damaged.
    """
    rows = read_samples(record.folder or Path()).to_pydict()
    label = np.array(rows["label"])
    clean = np.array(rows["clean_prediction"]) == label
    suite_cells = cells(corruptions(record.job.suite.attacks))
    return Verdicts(tuple(suite_cells), clean, np.array(rows["corrupted"]) == label[:, None])


def outcome(job: Job, images: Images, run: engine.Outcome) -> tuple[Outcome, dict[str, Any]]:
    """The outcome in terms of attacks, and the fields that only a record under corruptions has."""
    suite_cells = cells(corruptions(job.suite.attacks))
    return _outcome(job, images, run, suite_cells), extra(job, images, run, suite_cells)


def write(folder: Path, record: Record, outcome: Outcome, images: Images, run: engine.Outcome) -> Record:
    """Write a record under corruptions and its samples to `folder`, each file atomically, record.json last.

    Raises:
        ResourceError: when the disk is full or the folder cannot be written.
    """
    return write_files(folder, record, {samples.FILE: samples.encode(outcome, images, run.predictions)})


def extra(job: Job, images: Images, run: engine.Outcome, suite_cells: Sequence[Cell]) -> dict[str, Any]:
    """The fields that only a record under corruptions has."""
    correct = verdicts(images, run, suite_cells)
    height, width = images.x.shape[2:]
    fields = {
        "library": library(),
        "jpeg": dict(JPEG) if suite_cells[0].jpeg else None,
        "enlarged": enlargement(height, width),
        "draws": 1,
        "accuracy": shown_accuracies(correct),
        "pixels": pixels(run, suite_cells),
    }
    return {"corruptions": fields, **figures(correct, normaliser(job.dataset.name, width), job.seed)}


def shown_accuracies(correct: Verdicts) -> dict[str, dict[str, Any]]:
    """Accuracy by corruption and severity, as stored in a record."""
    return {
        name: {k: asdict(share) | {"interval": list(share.interval)} for k, share in by_severity.items()}
        for name, by_severity in accuracies(correct).items()
    }


def pixels(run: engine.Outcome, suite_cells: Sequence[Cell]) -> dict[str, dict[str, str]]:
    """sha256 over the digests of the corrupted images, chunk by chunk, for each corruption and severity."""
    digests: dict[str, dict[str, str]] = {}
    for number, cell in enumerate(suite_cells):
        digest = hashlib.sha256(run.pixels[:, number].contiguous().numpy().tobytes()).hexdigest()
        digests.setdefault(cell.name, {})[str(cell.severity)] = digest
    return digests


def _outcome(job: Job, images: Images, run: engine.Outcome, suite_cells: Sequence[Cell]) -> Outcome:
    """The outcome in terms of attacks: a corruption is an attack on the images that are correct without it."""
    correct, n = verdicts(images, run, suite_cells), len(images)
    fooled_by, first = first_wrong(correct, job.suite.attacks)
    fooling_cell = torch.from_numpy(first)
    fooled_prediction = run.predictions.gather(1, fooling_cell.clamp_min(0)[:, None]).squeeze(1)
    zeros = torch.zeros(n, dtype=torch.int64)
    wrong = run.clean != images.y
    costs = []
    for name, spec in zip(correct.names, job.suite.attacks, strict=True):
        columns = [i for i, cell in enumerate(suite_cells) if cell.name == name]
        survivors = int(correct.corrupted[:, columns].all(1).sum())
        seconds = float(run.seconds[columns].sum())
        costs.append(AttackCost(spec, n, survivors, n * len(columns), 0, seconds))
    nonfinite = int((run.predictions < 0).sum() + (run.clean < 0).sum())
    return Outcome(
        x_adv=images.x,
        robust=torch.tensor([name == "" for name in fooled_by]),
        fooled_by=fooled_by,
        clean_prediction=run.clean,
        prediction=torch.where(fooling_cell < 0, run.clean, fooled_prediction),
        clean_margin=run.margin,
        clean_draws=wrong.long(),
        draws=torch.tensor([int(name != "") for name in fooled_by]),
        distance=torch.zeros(n, dtype=torch.float64),
        steps=zeros,
        forward=zeros + len(suite_cells) + 1,
        backward=zeros,
        attacks=costs,
        health=result_warnings.nonfinite_logits(nonfinite),
        precision=job.precision,
        batch_size=run.batch_size,
    )

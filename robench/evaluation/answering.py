"""Check that a saved record still describes a defense, whose code may have changed under the same name and weights."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from robench.core.errors import ResourceError
from robench.corruption.suite import cells, corruptions
from robench.data import Images
from robench.defenses import Defense
from robench.engine import corruption_run
from robench.engine.batched_model import frozen
from robench.engine.judges import SEARCH
from robench.engine.knowledge import Attacker
from robench.engine.setup import Setup
from robench.engine.tolerances import margins, same_margins
from robench.records.findings import disagreeing
from robench.records.record import Record
from robench.records.samples import CORRUPTED, read_samples

# Number of clean images that are classified again; and of a corruption run, the number of images and of cells.
_IMAGES, _CORRUPTED, _CELLS = 64, 8, 2


def contradiction(record: Record, defense: Defense, images: Images, device: torch.device) -> str:
    """Classify some images again and describe how the results contradict the record; empty if they agree.

    At most 64 images, spread over the dataset, are classified. A randomized defense repeats the noise draw of the
    record. For a corruption run, some images are also classified at its first cells.

    Args:
        record: a record of these images, read from its folder.
        defense: on `device`.
    """
    try:
        rows = read_samples(record.folder or Path()).to_pydict()
    except ResourceError as error:
        return str(error)
    if rows["id"] != images.ids.tolist():
        return "its samples are other images"
    subset = _spread(len(images), _IMAGES)
    recorded = torch.tensor(rows["clean_margin"])[subset]
    current = _margins(record, defense, images, subset, device)
    changed = int((~same_margins(recorded, current)).sum())
    if changed:
        return f"{changed} of {len(subset)} clean margins have changed"
    if record.corrupted:
        for cell, changed, total in _changed_predictions(
            record, rows[CORRUPTED.name], defense, images, device
        ):
            if changed:
                return f"{changed} of {total} predictions at {cell} have changed"
    return ""


def _spread(n: int, count: int) -> list[int]:
    """At most `count` indices, evenly spread over `n`."""
    return sorted({i * n // count for i in range(count)})


def _margins(
    record: Record, defense: Defense, images: Images, rows: list[int], device: torch.device
) -> Tensor:
    job = record.job
    network = Setup.of(defense, Attacker(), job, device).network("corruption" if record.corrupted else SEARCH)
    batches = []
    with frozen(defense):
        for start in range(0, len(rows), job.batch_size):
            batch = rows[start : start + job.batch_size]
            logits = network.logits(images.x[batch].to(device), images.ids[batch].to(device)).float().cpu()
            batches.append(margins(logits))
    return torch.cat(batches)


def _changed_predictions(
    record: Record, predictions: list[list[int]], defense: Defense, images: Images, device: torch.device
) -> Iterator[tuple[str, int, int]]:
    """For the first cells: the cell's name, the number of changed predictions and the number of predictions."""
    rows = _spread(len(images), _CORRUPTED)
    subset = replace(images, x=images.x[rows], y=images.y[rows], ids=images.ids[rows])
    first_cells = cells(corruptions(record.job.suite.attacks))[:_CELLS]
    for answer in corruption_run.answers(
        Setup.of(defense, Attacker(), record.job, device), subset, first_cells, workers=1
    ):
        if answer.cell >= 0:
            recorded = [predictions[row][answer.cell] for row in rows[answer.rows]]
            cell = first_cells[answer.cell]
            changed, _ = disagreeing(answer.logits, recorded)
            yield f"{cell.name} {cell.severity}", len(changed), len(recorded)

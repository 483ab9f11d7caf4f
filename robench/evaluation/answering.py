"""Whether a record still speaks of a defense: a name and weights stay the same when the code around them changes."""

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

# Images that are asked again; and those at the first cells of a run under corruptions.
_IMAGES, _CORRUPTED, _CELLS = 64, 8, 2


def contradiction(record: Record, defense: Defense, images: Images, device: torch.device) -> str:
    """Why a record does not speak of the defense as it is now, in words; empty where nothing says so.

    At most 64 images, spread over the data set, are asked again: a randomised defense in the draw that the record
    keeps, and of a run under corruptions some at its first cells.

    Args:
        record: of these images, read from its folder.
        defense: on `device`.
    """
    try:
        rows = read_samples(record.folder or Path()).to_pydict()
    except ResourceError as error:
        return str(error)
    if rows["id"] != images.ids.tolist():
        return "its samples are of other images"
    n = len(images)
    chosen = sorted({i * n // _IMAGES for i in range(_IMAGES)})
    then = torch.tensor(rows["clean_margin"])[chosen]
    now = _margins(record, defense, images, chosen, device)
    changed = int((~same_margins(then, now)).sum())
    if changed:
        return f"{changed} of {len(chosen)} clean margins have changed"
    if record.corrupted:
        for cell, wrong, asked in _at_cells(record, rows[CORRUPTED.name], defense, images, device):
            if wrong:
                return f"{wrong} of {asked} predictions at {cell} have changed"
    return ""


def _margins(
    record: Record, defense: Defense, images: Images, rows: list[int], device: torch.device
) -> Tensor:
    job = record.job
    network = Setup.of(defense, Attacker(), job, device).network("corruption" if record.corrupted else SEARCH)
    parts = []
    with frozen(defense):
        for start in range(0, len(rows), job.batch_size):
            part = rows[start : start + job.batch_size]
            logits = network.logits(images.x[part].to(device), images.ids[part].to(device)).float().cpu()
            parts.append(margins(logits))
    return torch.cat(parts)


def _at_cells(
    record: Record, predictions: list[list[int]], defense: Defense, images: Images, device: torch.device
) -> Iterator[tuple[str, int, int]]:
    """A cell, how many predictions there are others than the record's, and of how many."""
    n = len(images)
    chosen = sorted({i * n // _CORRUPTED for i in range(_CORRUPTED)})
    some = replace(images, x=images.x[chosen], y=images.y[chosen], ids=images.ids[chosen])
    asked = cells(corruptions(record.job.suite.attacks))[:_CELLS]
    for answer in corruption_run.answers(
        Setup.of(defense, Attacker(), record.job, device), some, asked, workers=1
    ):
        if answer.cell >= 0:
            then = [predictions[row][answer.cell] for row in chosen[answer.rows]]
            cell = asked[answer.cell]
            wrong, _ = disagreeing(answer.logits, then)
            yield f"{cell.name} {cell.severity}", len(wrong), len(then)

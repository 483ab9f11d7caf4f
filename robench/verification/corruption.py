"""Verify a record of a run under corruptions: make the images again from the seed and classify them again.

This proves that the checkpoint gives these answers on the images that this release of the library makes.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench.core.errors import RobenchError
from robench.corruption.make import JPEG, enlargement, library
from robench.corruption.suite import Cell, cells, corruptions
from robench.data._base import Images
from robench.engine import result_warnings
from robench.engine.corruption_run import answers
from robench.engine.setup import Setup
from robench.records.corruption import of_record, shown_accuracies
from robench.records.findings import Finding, disagreeing, equal, other_margins, rows_hold, rows_named, same
from robench.records.record import Record
from robench.records.samples import read_samples
from robench.statistics.corruption import figures, first_wrong, normaliser
from robench.threats.threat import NO_THREAT
from robench.verification.counts import accuracies, aligned, column

Model = Callable[[Tensor], Tensor]

# The fields of record.json that `figures` returns.
FIGURES = ("corrupted_accuracy", "mce", "relative_mce")


def findings(
    record: Record, model: Model, images: Images, stochastic: bool, device: torch.device | str = "cpu"
) -> Iterator[Finding]:
    """Run the checks that are specific to corruptions, and yield passed and failed ones.

    Args:
        record: as read from its folder.
        model: maps images to logits, on `device`.
        images: the images of the record's dataset, split and n.
    """
    rows, job = read_samples(record.folder or Path()).to_pydict(), record.job
    for name, fixed in (("threat", NO_THREAT), ("knowledge", "full"), ("precision", "fp32")):
        yield equal(name, getattr(job, name), fixed, "fixed for runs under corruptions")
    same = list(aligned(job.n, rows, images))
    yield from same
    if job.seed < 0:
        yield Finding("seed", False, f"{job.seed}: seeds of corruptions start at 0")
        return
    try:
        requested = cells(corruptions(job.suite.attacks))
    except RobenchError as error:
        yield Finding("suite.attacks", False, str(error))
        return
    if "corrupted" not in rows or not requested:
        yield Finding("samples.corrupted", False, "no predictions under corruptions")
        return
    uneven = [i for i, row in enumerate(rows["corrupted"]) if len(row) != len(requested)]
    yield rows_hold("samples.corrupted", uneven, f"{len(requested)} predictions per image")
    if uneven or not all(finding.held for finding in same):
        return
    yield from _settings(record, images, requested)
    yield from _arithmetic(record, rows, images)
    yield from _replay(record, rows, model, images, stochastic, torch.device(device))


def _settings(record: Record, images: Images, requested: list[Cell]) -> Iterator[Finding]:
    """Check how the images were made, as far as the images do not show it."""
    settings = {
        "jpeg": dict(JPEG) if requested[0].jpeg else None,
        "enlarged": enlargement(*images.x.shape[2:]),
        "draws": 1,
    }
    claims = record.extra["corruptions"]
    for name, value in settings.items():
        yield equal(f"corruptions.{name}", claims[name], value, "how the images are made")


def _arithmetic(record: Record, rows: dict[str, list[Any]], images: Images) -> Iterator[Finding]:
    outcomes, extra, n = of_record(record), record.extra, record.job.n
    fooled_by, first_cell = first_wrong(outcomes, record.job.suite.attacks)
    yield column(rows, "fooled_by", fooled_by, "the first corruption that changed each prediction")
    pairs = zip(rows["corrupted"], rows["clean_prediction"], first_cell.tolist(), strict=True)
    predictions = [cells_[at] if at >= 0 else clean for cells_, clean, at in pairs]
    passes = len(outcomes.cells) + 1
    for name, values, what in (
        ("prediction", predictions, "under the first corruption that changed it"),
        ("clean_draws", (~outcomes.clean).astype(int).tolist(), "1 where the answer is wrong"),
        ("draws", [int(by != "") for by in fooled_by], "1 where the answer is wrong"),
        ("distance", [0.0] * n, "nothing is attacked"),
        ("steps", [0] * n, "nothing is attacked"),
        ("forward", [passes] * n, "each image, clean and under every corruption"),
        ("backward", [0] * n, "nothing is attacked"),
    ):
        yield column(rows, name, values, what)
    yield from accuracies(record, int(outcomes.clean.sum()), fooled_by.count(""))
    claimed, expected = extra["corruptions"]["accuracy"], shown_accuracies(outcomes)
    differing = [name for name in expected if not same(claimed.get(name), expected[name])]
    detail = f"{len(outcomes.cells)} cells counted from the samples, with Wilson's intervals"
    detail += f"; {differing[0]} differs" if differing else ""
    yield Finding("corruptions.accuracy", same(claimed, expected), detail)
    # The image size decides whether AlexNet's errors apply.
    by = normaliser(record.job.dataset.name, images.x.shape[-1])
    expected = figures(outcomes, by, record.job.seed)
    close = [_close(name, extra.get(name), expected.get(name)) for name in FIGURES]
    yield from close
    if figures(outcomes, by, record.job.seed + 1) != expected:
        detail = "seed of the bootstrap intervals"
        yield Finding("seed", all(finding.held for finding in close), detail)
    specs = tuple(cost.spec for cost in record.attacks)
    covers = ("attacks.spec", "suite.attacks")
    yield equal("suite.attacks", record.job.suite.attacks, specs, "the corruptions that were run", *covers)
    for cost, name in zip(record.attacks, outcomes.names, strict=False):
        columns = [i for i, cell in enumerate(outcomes.cells) if cell.name == name]
        correct = int(outcomes.corrupted[:, columns].all(1).sum())
        for part, value, what in (
            ("attacked", n, "every image"),
            ("survivors", correct, "correct at all severities"),
            ("forward", n * len(columns), "each image at every severity"),
            ("backward", 0, "nothing is attacked"),
        ):
            claimed_value = getattr(cost, part)
            yield equal(f"attacks.{name}.{part}", claimed_value, value, what, f"attacks.{part}")
    for direction, value in (("forward", n * passes), ("backward", 0)):
        what = "each image, clean and under every corruption"
        yield equal(f"passes.{direction}", record.passes[direction], value, what)
    nonfinite = sum(row.count(-1) for row in rows["corrupted"]) + rows["clean_prediction"].count(-1)
    raised = tuple(result_warnings.nonfinite_logits(nonfinite))
    codes = ", ".join(warning.code for warning in raised) or "no warnings"
    yield Finding("health", record.health == raised, f"{codes} from the samples")


def _close(name: str, claimed: Any, expected: Any) -> Finding:
    """Compare up to the last bits of a sum, because another NumPy may add in another order."""
    shown = _percent(expected)
    if same(claimed, expected):
        return Finding(name, True, f"{shown} (%, with intervals, from the samples)")
    return Finding(name, False, f"the record says {_percent(claimed)}, found {shown} (%, from the samples)")


def _percent(value: Any) -> str:
    return ", ".join(f"{100 * number:.2f}" for number in _numbers(value)) or "none"


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in _numbers(value[key])]
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def _proven(record: Record) -> str:
    mean = record.extra.get("corrupted_accuracy", {}).get("common")
    of_common = f", {100 * mean['value']:.2f} % under corruptions" if mean else ""
    return (
        f"clean accuracy is {100 * record.clean_accuracy.value:.2f} %{of_common} on these {record.job.n} images, "
        "made and classified again"
    )


def _replay(
    record: Record,
    rows: dict[str, list[Any]],
    model: Model,
    images: Images,
    stochastic: bool,
    device: torch.device,
) -> Iterator[Finding]:
    job, claims = record.job, record.extra["corruptions"]
    requested = cells(corruptions(job.suite.attacks))
    recorded = {-1: rows["clean_prediction"]} | {
        k: [row[k] for row in rows["corrupted"]] for k in range(len(requested))
    }
    digests = [hashlib.sha256() for _ in requested]
    broken: dict[int, list[int]] = {}
    off: list[int] = []
    ties = 0
    setup = Setup(model, job.seed, device, job.batch_size, stochastic=stochastic)
    for answer in answers(setup, images, requested):
        wrong, tied = disagreeing(answer.logits, recorded[answer.cell][answer.rows])
        ties += tied
        if wrong:
            broken.setdefault(answer.cell, []).extend(answer.rows.start + row for row in wrong)
        if answer.cell < 0:
            margins = other_margins(answer.logits, rows["clean_margin"][answer.rows])
            off += [answer.rows.start + row for row in margins]
        else:
            digests[answer.cell].update(bytes.fromhex(answer.digest))
    equal_pixels = [
        claims["pixels"][cell.name][str(cell.severity)] == digest.hexdigest()
        for cell, digest in zip(requested, digests, strict=True)
    ]
    differing_cells = [cell for cell, held in zip(requested, equal_pixels, strict=True) if not held]
    detail = f"{sum(equal_pixels)} of {len(requested)} sets of corrupted images are the same when made again"
    if claims["library"] != library():
        detail += f" (made by {claims['library']}, repeated with {library()})"
    if differing_cells:
        detail += f"; not {differing_cells[0].name} {differing_cells[0].severity}"
    yield Finding("corruptions.pixels", not differing_cells, detail)
    yield rows_hold("samples.clean_prediction", broken.pop(-1, []), f"{len(images)} predictions")
    yield rows_hold("samples.clean_margin", off, "between the two best logits")
    count = len(images) * len(requested)
    differing = sum(map(len, broken.values()))
    tied = f", {ties} of them a tie here" if ties else ""
    detail = f"{count - differing} of {count} predictions are the same{tied}"
    if broken:
        first = min(broken)
        detail += f"; {requested[first].name} {requested[first].severity}: {rows_named(broken[first])}"
    yield Finding("samples.corrupted", not broken, detail, proven=_proven(record))

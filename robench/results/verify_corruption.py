"""Re-check a record of a run under corruptions: the images made again from the seed, the network asked again.

What it proves: these images, made by this release of the library, are answered so by this checkpoint.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robench import content
from robench.corruption.make import library
from robench.corruption.suite import cells, corruptions
from robench.data._base import Images
from robench.engine.corruption import answers
from robench.results.corruption import figures, first_wrong, normaliser
from robench.results.corruption_record import of_record, shown_accuracies
from robench.results.findings import Finding, disagreeing, equal, rows_named
from robench.results.record import Record
from robench.results.samples import input_digests, read_samples
from robench.results.statistics import Accuracy

Model = Callable[[Tensor], Tensor]


def findings(
    record: Record, model: Model, images: Images, stochastic: bool, device: torch.device | str = "cpu"
) -> Iterator[Finding]:
    """The checks that are particular to corruptions, those that fail included.

    Args:
        record: as read from its folder.
        model: images to logits, on `device`.
        images: those of the record's data set, split and n.
    """
    rows = read_samples(record.folder or Path()).to_pydict()
    aligned = [
        equal("n", record.job.n, len(images), "images that were loaded"),
        _column(rows, "id", images.ids.tolist()),
        _column(rows, "label", images.y.tolist()),
        _column(rows, "digest", input_digests(images.x)),
    ]
    yield from aligned
    suite = content.suites().get(record.job.suite.name)
    if suite is not None and not suite.rungs:
        meant = tuple(map(str, corruptions(suite.attacks)))
        yield equal("suite.attacks", record.job.suite.attacks, meant, f"what {suite.name} stands for")
    asked = cells(corruptions(record.job.suite.attacks))
    uneven = [i for i, row in enumerate(rows["corrupted"]) if len(row) != len(asked)]
    yield Finding("samples.corrupted", not uneven, f"{len(asked)} predictions a row; {rows_named(uneven)}")
    if uneven:
        return
    yield from _arithmetic(record, rows, images)
    if all(finding.held for finding in aligned):
        yield from _replay(record, rows, model, images, stochastic, torch.device(device))


def _arithmetic(record: Record, rows: dict[str, list[Any]], images: Images) -> Iterator[Finding]:
    held, extra, n = of_record(record), record.extra, record.job.n
    fooled_by, _ = first_wrong(held, record.job.suite.attacks)
    yield _column(rows, "fooled_by", fooled_by, "the first corruption that turned each")
    for name, said, correct in (
        ("clean_accuracy", record.clean_accuracy, int(held.clean.sum())),
        ("robust_accuracy", record.robust_accuracy, fooled_by.count("")),
    ):
        true = Accuracy.of(correct, n)
        yield equal(f"{name}.correct", said.correct, true.correct, "counted from the samples")
        yield equal(f"{name}.value", said.value, true.value, "correct / n")
        yield equal(f"{name}.interval", said.interval, true.interval, "Wilson's, 95 %")
    said, found = extra["corruptions"]["accuracy"], shown_accuracies(held)
    off = [name for name in found if said.get(name) != found[name]]
    detail = f"{len(held.cells)} cells counted from the samples, with Wilson's intervals"
    yield Finding("corruptions.accuracy", said == found, detail + (f"; {off[0]} is another" if off else ""))
    # The images decide whether AlexNet's errors mean anything for them.
    by = normaliser(record.job.dataset.name, images.x.shape[-1])
    found = figures(held, by, record.job.seed)
    for name in ("corrupted_accuracy", "mce", "relative_mce"):
        yield _close(name, extra.get(name), found.get(name))
    for cost, name in zip(record.attacks, held.names, strict=True):
        columns = [i for i, cell in enumerate(held.cells) if cell.name == name]
        right = int(held.corrupted[:, columns].all(1).sum())
        yield equal(f"attacks.{name}.survivors", cost.survivors, right, "right at all its severities")
    total = n * (len(held.cells) + 1)
    yield equal("passes.forward", record.passes["forward"], total, "each image, clean and at every cell")


def _column(
    rows: dict[str, list[Any]], name: str, actual: list[Any], what: str = "of the images that were loaded"
) -> Finding:
    said = rows[name]
    broken = [i for i, (a, b) in enumerate(zip(said, actual, strict=False)) if a != b]
    return Finding(
        f"samples.{name}", not broken and len(said) == len(actual), f"{what}; {rows_named(broken)}"
    )


def _close(name: str, said: Any, found: Any) -> Finding:
    """Equal up to the last bits of a sum, which another NumPy may add up in another order."""
    numbers, others = _numbers(said), _numbers(found)
    held = len(numbers) == len(others) and np.allclose(numbers, others, rtol=0, atol=1e-9)
    shown = ", ".join(f"{100 * value:.2f}" for value in others) or "none"
    if held:
        return Finding(name, True, f"{shown} (%, with intervals, from the samples)")
    told = ", ".join(f"{100 * value:.2f}" for value in numbers) or "none"
    return Finding(name, False, f"the record says {told}, found {shown} (%, from the samples)")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in _numbers(value[key])]
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def _replay(
    record: Record,
    rows: dict[str, list[Any]],
    model: Model,
    images: Images,
    stochastic: bool,
    device: torch.device,
) -> Iterator[Finding]:
    job, said = record.job, record.extra["corruptions"]
    asked = cells(corruptions(job.suite.attacks))
    told = {-1: rows["clean_prediction"]} | {
        k: [row[k] for row in rows["corrupted"]] for k in range(len(asked))
    }
    digests = [hashlib.sha256() for _ in asked]
    broken: dict[int, list[int]] = {}
    ties = 0
    for answer in answers(
        model,
        images,
        asked,
        job.seed,
        device=device,
        lanes=job.batch_size,
        stochastic=stochastic,
    ):
        wrong, tied = disagreeing(answer.logits, told[answer.cell][answer.rows])
        ties += tied
        if wrong:
            broken.setdefault(answer.cell, []).extend(answer.rows.start + row for row in wrong)
        if answer.cell >= 0:
            digests[answer.cell].update(bytes.fromhex(answer.digest))
    same = [
        said["pixels"][cell.name][str(cell.severity)] == digest.hexdigest()
        for cell, digest in zip(asked, digests, strict=True)
    ]
    made_by = "" if said["library"] == library() else f" (made by {said['library']}, here is {library()})"
    lost = [f"{cell.name} {cell.severity}" for cell, held in zip(asked, same, strict=True) if not held]
    detail = f"{sum(same)} of {len(asked)} sets of corrupted images are the same, made from the seed{made_by}"
    yield Finding("corruptions.pixels", not lost, detail + (f"; not {lost[0]}" if lost else ""))
    clean = broken.pop(-1, [])
    yield Finding("samples.clean_prediction", not clean, f"{len(images)} predictions; {rows_named(clean)}")
    count = len(images) * len(asked)
    differing = sum(map(len, broken.values()))
    tied = f", {ties} of them a tie here" if ties else ""
    detail = f"{count - differing} of {count} predictions are the same{tied}"
    if broken:
        first = min(broken)
        detail += f"; {asked[first].name} {asked[first].severity}: {rows_named(broken[first])}"
    yield Finding("samples.corrupted", not broken, detail)

"""Accuracy over the number of images that a purifier was fine-tuned on, as a table and as curves."""

from collections.abc import Sequence
from pathlib import Path

from robench.catalog import Suite
from robench.engine.outcome import ResultWarning
from robench.records.randomized import unattacked
from robench.records.record import Record
from robench.reports.dataset_transfer import CLEAN, LEVELS, by_level
from robench.reports.formatting import cell
from robench.reports.notes import Marked, warning_notes
from robench.reports.plots.curves import Curve, Point, draw
from robench.reports.plots.style import save
from robench.reports.purifiers import rows_of
from robench.reports.table import Grid
from robench.statistics.accuracy import Accuracy

ByCount = Sequence[tuple[int, Sequence[Record]]]


def grid(title: str, by_count: ByCount, suite: Suite) -> Grid:
    """A table with one line per number of images and one column per attacker knowledge.

    Args:
        by_count: pairs of a number of images and its records.
    """
    columns = ("images", CLEAN, *LEVELS)
    marked: list[Marked] = []
    lines = []
    for count, records in by_count:
        levels, warnings = _levels(records, suite)
        lines.append((str(count), *(cell(levels.get(name), name in warnings) for name in columns[1:])))
        marked += ((f"{count} images", name, of_level) for name, of_level in warnings.items())
    return Grid(
        title=f"{title} · accuracy in %, 95 % intervals",
        columns=columns,
        groups=(tuple(lines),),
        numbers=frozenset(columns),
        notes=("full: exact gradients", *warning_notes(marked)),
    )


def picture(title: str, by_count: ByCount, suite: Suite, path: Path) -> Path:
    """Write a plot with a curve for clean accuracy and for each attacker knowledge."""
    levels = [(count, _levels(records, suite)[0]) for count, records in by_count]
    curves = []
    for name in (CLEAN, *LEVELS):
        points = [Point.of(count, accuracies[name]) for count, accuracies in levels if name in accuracies]
        if points:
            curves.append(Curve(name if name == CLEAN else f"attacker: {name}", points))
    return save(draw(curves, "number of images for fine-tuning", title), path)


def _levels(
    records: Sequence[Record], suite: Suite
) -> tuple[dict[str, Accuracy], dict[str, Sequence[ResultWarning]]]:
    """The accuracies and warnings of one purifier's records, by attacker knowledge."""
    rungs = {rung.name: rung for rung in suite.rungs}
    accuracies: dict[str, Accuracy] = {}
    warnings: dict[str, Sequence[ResultWarning]] = {}
    for row in rows_of(records, suite):
        accuracies[CLEAN] = unattacked(row.purified)
        for level, record in by_level(row, rungs).items():
            accuracies[level] = record.robust_accuracy
            if record.health:
                warnings[level] = record.health
    return accuracies, warnings

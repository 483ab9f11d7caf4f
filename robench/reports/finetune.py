"""Accuracy over the number of images that a purifier was fine-tuned on, as a table and as curves."""

from collections.abc import Sequence
from pathlib import Path

from robench.catalog import Suite
from robench.records.randomized import unattacked
from robench.records.record import Record
from robench.reports.dataset_transfer import CLEAN, LEVELS, by_level
from robench.reports.plots.curves import Curve, Point, draw
from robench.reports.plots.style import save
from robench.reports.purifiers import EMPTY, rows_of
from robench.reports.table import Grid
from robench.statistics.accuracy import Accuracy, percent, span

Found = Sequence[tuple[int, Sequence[Record]]]


def grid(title: str, found: Found, suite: Suite) -> Grid:
    """A line a number of images, a column a level of knowledge.

    Args:
        found: the number of images, and the records of the ladder for it.
    """
    columns = ("images", CLEAN, *LEVELS)
    doubts, lines = {}, []
    for count, records in found:
        levels, marked = _levels(records, suite)
        cells = []
        for name in columns[1:]:
            mark = " !" if name in marked else ""
            cells.append(f"{percent(levels[name])}{mark}\n{span(levels[name])}" if name in levels else EMPTY)
        lines.append((str(count), *cells))
        doubts |= {f"! {count} images, {name}: {text}": None for name, text in marked.items()}
    return Grid(
        title=f"{title} · accuracy in %, 95 % intervals",
        columns=columns,
        groups=(tuple(lines),),
        numbers=frozenset(columns),
        notes=("full: exact gradients", *doubts),
    )


def picture(title: str, found: Found, suite: Suite, path: Path) -> Path:
    """Write the curves: clean accuracy and each level of knowledge."""
    levels = [(count, _levels(records, suite)[0]) for count, records in found]
    curves = []
    for name in (CLEAN, *LEVELS):
        points = [Point.of(count, own[name]) for count, own in levels if name in own]
        if points:
            curves.append(Curve(name if name == CLEAN else f"attacker: {name}", points))
    return save(draw(curves, "images that it was fine-tuned on", title), path)


def _levels(records: Sequence[Record], suite: Suite) -> tuple[dict[str, Accuracy], dict[str, str]]:
    """Accuracy by level, and the doubts by level, of one purifier's records."""
    rungs = {rung.name: rung for rung in suite.rungs}
    found: dict[str, Accuracy] = {}
    marked: dict[str, str] = {}
    for row in rows_of(records, suite):
        found[CLEAN] = unattacked(row.purified)
        for level, record in by_level(row, rungs).items():
            found[level] = record.robust_accuracy
            if record.health:
                marked[level] = "; ".join(f"{mark.code}: {mark.text}" for mark in record.health)
    return found, marked

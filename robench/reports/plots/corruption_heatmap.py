"""A heat map of accuracies under corruptions: one row per corruption, one column per severity."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robench.corruption.names import COMMON, SEVERITIES
from robench.records.record import Record
from robench.records.store import slug
from robench.reports.formatting import suite_label
from robench.reports.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "heatmap.png"
# Inches: a cell, the names of the rows, the space above the first row, and between two groups.
_WIDE, _HIGH, _LEFT, _TOP, _GAP = 0.78, 0.3, 1.85, 1.42, 0.16


@dataclass(frozen=True)
class Row:
    """A name, and accuracies in [0, 1], None where there is none."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Map:
    """The content of a heat map.

    Attributes:
        title, facts: above it; facts in smaller print, a line each.
        columns: their names.
        groups: rows that stand together.
    """

    title: str
    facts: Sequence[str]
    columns: Sequence[str]
    groups: Sequence[Sequence[Row]]


def of_record(record: Record) -> Map:
    """The map of one record: the common corruptions, those for validation, and the mean over the severities."""
    from robench.reports.corruption import headline

    held = record.extra["corruptions"]["accuracy"]
    groups: dict[bool, list[Row]] = {True: [], False: []}
    for name, own in held.items():
        values = [own[str(k)]["value"] if str(k) in own else None for k in SEVERITIES]
        present = [value for value in values if value is not None]
        groups[name in COMMON].append(
            Row(name.replace("_", " "), [*values, sum(present) / len(present) if present else None])
        )
    columns = [*(f"severity {k}" if k == 1 else str(k) for k in SEVERITIES), "mean"]
    return Map(record.job.defense.name, headline(record), columns, [own for own in groups.values() if own])


def write(found: Map, path: Path) -> Path:
    """Write the map, in the format that the name ends in.

    Raises:
        ResourceError: when the file cannot be written.
    """
    return style.save(draw(found), path)


def figures(records: Sequence[Record]) -> "dict[str, Figure]":
    """A figure a record under corruptions, by a name for its file; others have none."""
    return {
        "-".join(map(slug, (record.job.protocol, record.job.defense.name, suite_label(record)))): draw(
            of_record(record)
        )
        for record in records
        if record.corrupted
    }


def draw(found: Map) -> "Figure":
    """The map as a figure."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    rows = sum(len(group) for group in found.groups)
    width = _LEFT + _WIDE * len(found.columns) + _GAP + 0.25
    height = _TOP + _HIGH * rows + _GAP * (len(found.groups) - 1) + 0.2
    figure = style.figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    colours = colormaps[style.SHADES]
    axes.text(
        0.2,
        0.32,
        style.literal(_cut(found.title, 46)),
        fontsize=13,
        weight="bold",
        color=style.INK,
        va="center",
    )
    for i, line in enumerate(found.facts):
        axes.text(
            0.2, 0.58 + 0.2 * i, style.literal(_cut(line, 98)), fontsize=8.5, color=style.QUIET, va="center"
        )

    def left(column: int) -> float:
        # The last column is no severity: it stands a little apart.
        return _LEFT + _WIDE * column + (_GAP if column == len(found.columns) - 1 else 0)

    for column, name in enumerate(found.columns):
        place = (left(column) + _WIDE / 2, _TOP - 0.12)
        axes.text(*place, name, ha="center", va="center", fontsize=8.5, color=style.QUIET)
    top = _TOP
    for group in found.groups:
        for row in group:
            middle = top + _HIGH / 2
            axes.text(
                _LEFT - 0.12,
                middle,
                style.literal(row.name),
                ha="right",
                va="center",
                fontsize=9.5,
                color=style.INK,
            )
            for column, value in enumerate(row.values):
                face = colours(0.0 if value is None else value)
                corner = (left(column) + 0.02, top + 0.015)
                axes.add_patch(
                    Rectangle(
                        corner,
                        _WIDE - 0.04,
                        _HIGH - 0.03,
                        linewidth=0,
                        facecolor=style.LINE if value is None else face,
                    )
                )
                if value is not None:
                    ink = "white" if _dark(face) else style.INK
                    place = (left(column) + _WIDE / 2, middle)
                    axes.text(*place, f"{100 * value:.1f}", ha="center", va="center", fontsize=9, color=ink)
            top += _HIGH
        top += _GAP
    return figure


def _dark(colour: tuple[float, ...]) -> bool:
    """Whether white reads better on it than ink: by its luminance (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.21


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"

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
# Inches: width and height of a cell, width of the row names, space above the first row and between groups.
_WIDE, _HIGH, _LEFT, _TOP, _GAP = 0.78, 0.3, 1.85, 1.42, 0.16


@dataclass(frozen=True)
class Row:
    """A name, and accuracies in [0, 1]; None for missing ones."""

    name: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Map:
    """The content of a heat map.

    Attributes:
        title: the title above the map.
        facts: lines in smaller print below the title.
        columns: names of the columns.
        groups: groups of rows, separated by a gap.
    """

    title: str
    facts: Sequence[str]
    columns: Sequence[str]
    groups: Sequence[Sequence[Row]]


def of_record(record: Record) -> Map:
    """The map of one record: common corruptions, those for validation, and the mean over severities."""
    from robench.reports.corruption import headline

    accuracies = record.extra["corruptions"]["accuracy"]
    groups: dict[bool, list[Row]] = {True: [], False: []}
    for name, by_severity in accuracies.items():
        values = [by_severity[str(k)]["value"] if str(k) in by_severity else None for k in SEVERITIES]
        present = [value for value in values if value is not None]
        groups[name in COMMON].append(
            Row(name.replace("_", " "), [*values, sum(present) / len(present) if present else None])
        )
    columns = [*(f"severity {k}" if k == 1 else str(k) for k in SEVERITIES), "mean"]
    return Map(record.job.defense.name, headline(record), columns, [rows for rows in groups.values() if rows])


def write(heat_map: Map, path: Path) -> Path:
    """Write the map in the format given by the file extension.

    Raises:
        ResourceError: when the file cannot be written.
    """
    return style.save(draw(heat_map), path)


def figures(records: Sequence[Record]) -> "dict[str, Figure]":
    """A figure for each record under corruptions, by file name."""
    return {
        "-".join(map(slug, (record.job.protocol, record.job.defense.name, suite_label(record)))): draw(
            of_record(record)
        )
        for record in records
        if record.corrupted
    }


def draw(heat_map: Map) -> "Figure":
    """The map as a figure."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    rows = sum(len(group) for group in heat_map.groups)
    width = _LEFT + _WIDE * len(heat_map.columns) + _GAP + 0.25
    height = _TOP + _HIGH * rows + _GAP * (len(heat_map.groups) - 1) + 0.2
    figure = style.figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    colours = colormaps[style.SHADES]
    axes.text(
        0.2,
        0.32,
        style.literal(_cut(heat_map.title, 46)),
        fontsize=13,
        weight="bold",
        color=style.INK,
        va="center",
    )
    for i, line in enumerate(heat_map.facts):
        axes.text(
            0.2, 0.58 + 0.2 * i, style.literal(_cut(line, 98)), fontsize=8.5, color=style.QUIET, va="center"
        )

    def left(column: int) -> float:
        # The last column is the mean and is set apart.
        return _LEFT + _WIDE * column + (_GAP if column == len(heat_map.columns) - 1 else 0)

    for column, name in enumerate(heat_map.columns):
        place = (left(column) + _WIDE / 2, _TOP - 0.12)
        axes.text(*place, name, ha="center", va="center", fontsize=8.5, color=style.QUIET)
    top = _TOP
    for group in heat_map.groups:
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
                cell_colour = colours(0.0 if value is None else value)
                corner = (left(column) + 0.02, top + 0.015)
                axes.add_patch(
                    Rectangle(
                        corner,
                        _WIDE - 0.04,
                        _HIGH - 0.03,
                        linewidth=0,
                        facecolor=style.LINE if value is None else cell_colour,
                    )
                )
                if value is not None:
                    text_colour = "white" if _dark(cell_colour) else style.INK
                    place = (left(column) + _WIDE / 2, middle)
                    axes.text(
                        *place, f"{100 * value:.1f}", ha="center", va="center", fontsize=9, color=text_colour
                    )
            top += _HIGH
        top += _GAP
    return figure


def _dark(colour: tuple[float, ...]) -> bool:
    """Whether white text has more contrast on a colour than dark text, by its luminance (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.21


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"

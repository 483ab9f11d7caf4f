"""A heat map of accuracies under corruptions: one row per corruption, one column per severity."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
_COLUMNS = ("severity 1", *map(str, SEVERITIES[1:]), "mean")


def write(record: Record, path: Path) -> Path:
    """Write the map of a record in the format given by the file extension.

    Raises:
        ResourceError: when the file cannot be written.
    """
    return style.save(draw(record), path)


def figures(records: Sequence[Record]) -> "dict[str, Figure]":
    """A figure for each record under corruptions, by file name."""
    return {
        "-".join(map(slug, (r.job.protocol, r.job.defense.name, suite_label(r)))): draw(r)
        for r in records
        if r.corrupted
    }


def groups(record: Record) -> list[dict[str, list[float | None]]]:
    """The rows of the common corruptions and of those for validation, by name: an accuracy in [0, 1] for each severity,
    None for a missing one, and their mean."""
    common, validation = {}, {}
    for name, by_severity in record.extra["corruptions"]["accuracy"].items():
        values = [by_severity.get(str(k), {}).get("value") for k in SEVERITIES]
        present = [value for value in values if value is not None]
        row = [*values, sum(present) / len(present) if present else None]
        (common if name in COMMON else validation)[name.replace("_", " ")] = row
    return [rows for rows in (common, validation) if rows]


def draw(record: Record) -> "Figure":
    """The map of one record."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    from robench.reports.corruption import headline

    row_groups = groups(record)
    width = _LEFT + _WIDE * len(_COLUMNS) + _GAP + 0.25
    height = _TOP + _HIGH * sum(map(len, row_groups)) + _GAP * (len(row_groups) - 1) + 0.2
    figure = style.figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    colours = colormaps[style.SHADES]

    def write_text(
        x: float, y: float, text: str, size: float, color: str = style.INK, **options: Any
    ) -> None:
        axes.text(x, y, style.literal(text), fontsize=size, color=color, va="center", **options)

    write_text(0.2, 0.32, _cut(record.job.defense.name, 46), 13, weight="bold")
    for i, line in enumerate(headline(record)):
        write_text(0.2, 0.58 + 0.2 * i, _cut(line, 98), 8.5, style.QUIET)
    # The last column is the mean and is set apart.
    lefts = [_LEFT + _WIDE * column for column in range(len(SEVERITIES))]
    lefts.append(_LEFT + _WIDE * len(SEVERITIES) + _GAP)
    for left, name in zip(lefts, _COLUMNS, strict=True):
        write_text(left + _WIDE / 2, _TOP - 0.12, name, 8.5, style.QUIET, ha="center")
    top = _TOP
    for rows in row_groups:
        for name, values in rows.items():
            write_text(_LEFT - 0.12, top + _HIGH / 2, name, 9.5, ha="right")
            for left, value in zip(lefts, values, strict=True):
                colour = style.LINE if value is None else colours(value)
                corner, size = (left + 0.02, top + 0.015), (_WIDE - 0.04, _HIGH - 0.03)
                axes.add_patch(Rectangle(corner, *size, linewidth=0, facecolor=colour))
                if value is not None:
                    text_colour = "white" if _dark(colours(value)) else style.INK
                    write_text(
                        left + _WIDE / 2, top + _HIGH / 2, f"{100 * value:.1f}", 9, text_colour, ha="center"
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

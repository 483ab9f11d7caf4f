"""Clean against robust accuracy: one labeled point per defense, with both intervals and any claim."""

from collections.abc import Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

from robench.records.record import Record
from robench.records.store import slug
from robench.reports.labels import place_labels, short_names
from robench.reports.leaderboards import Table, leaderboards
from robench.reports.plots import style
from robench.reports.ranking import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Size in inches, the part of it for the axes, and points per inch.
_SIZE, _AXES, _POINTS = (7.6, 4.8), (0.09, 0.12, 0.88, 0.75), 72
_FONT, _LETTER = 8, 0.58


def draw(records: Sequence[Record]) -> "dict[str, Figure]":
    """One figure for each table of a board with at least two defenses."""
    figures = {}
    for board in leaderboards(records):
        for table in board.tables:
            if len({row.name for row in table.rows}) > 1:
                job = table.job
                name = slug(f"{job.protocol}-{job.suite.name}-{job.knowledge}")
                figures[name] = _draw(table)
    return figures


def _draw(table: Table) -> "Figure":
    figure = style.figure(*_SIZE)
    axes = figure.add_axes(_AXES)
    rows = table.rows
    for row in rows:
        _point(axes, row)
    for accuracies, limit in (
        ([row.record.clean_accuracy for row in rows], axes.set_xlim),
        ([row.record.robust_accuracy for row in rows], axes.set_ylim),
    ):
        low, high = (100 * end(a.interval[i] for a in accuracies) for i, end in ((0, min), (1, max)))
        margin = max(1.0, 0.06 * (high - low))
        limit(max(-1.0, low - margin), min(101.0, high + margin))
    style.frame(axes, "", "clean accuracy, %", "robust accuracy, %")
    figure.text(_AXES[0], 0.945, style.literal(f"Robust against clean accuracy: {table.title}"), fontsize=10)
    figure.text(_AXES[0], 0.9, _key(rows), fontsize=8, color=style.QUIET)
    if unnamed := _labels(axes, rows):
        note = shorten(f"no room for the names of {', '.join(unnamed)}", 120, placeholder=" ...")
        figure.text(_AXES[0], 0.872, style.literal(note), fontsize=7, color=style.QUIET)
    return figure


def _key(rows: Sequence[Row]) -> str:
    hollow = "; hollow: not ranked because of a warning" if any(row.warnings for row in rows) else ""
    claimed = "; dash: claimed" if any(row.claimed is not None for row in rows) else ""
    return f"lines: 95 % intervals{hollow}{claimed}"


def _labels(axes: "Axes", rows: Sequence[Row]) -> list[str]:
    """Write names beside their points, and return those without room."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    frame = (_SIZE[0] * _AXES[2] * _POINTS, _SIZE[1] * _AXES[3] * _POINTS)

    def place(x: float, y: float) -> tuple[float, float]:
        return (100 * x - left) / (right - left) * frame[0], (100 * y - low) / (high - low) * frame[1]

    points, crosses = [], []
    for clean, robust in ((row.record.clean_accuracy, row.record.robust_accuracy) for row in rows):
        points.append(place(clean.value, robust.value))
        (x, y), ends = points[-1], [place(clean.interval[i], robust.interval[i]) for i in (0, 1)]
        crosses += [(ends[0][0], y - 1, ends[1][0], y + 1), (x - 1, ends[0][1], x + 1, ends[1][1])]
    from matplotlib.patheffects import withStroke

    # A halo keeps names readable where an interval crosses them.
    halo = [withStroke(linewidth=2.5, foreground="white")]
    names = short_names([row.name for row in rows])
    sizes = [(_LETTER * _FONT * len(name), 1.3 * _FONT) for name in names]
    corners = place_labels(points, sizes, frame, crosses)
    for name, corner in zip(names, corners, strict=True):
        if corner:
            position = (corner[0] / frame[0], (corner[1] + 0.2 * _FONT) / frame[1])
            look = {"fontsize": _FONT, "color": style.INK, "path_effects": halo}
            axes.text(*position, style.literal(name), transform=axes.transAxes, **look)
    return [name for name, corner in zip(names, corners, strict=True) if corner is None]


def _point(axes: "Axes", row: Row) -> None:
    clean, robust = row.record.clean_accuracy, row.record.robust_accuracy
    bars = [[[100 * (a.value - a.interval[0])], [100 * (a.interval[1] - a.value)]] for a in (clean, robust)]
    colour = style.colour(4)
    axes.errorbar(
        100 * clean.value,
        100 * robust.value,
        xerr=bars[0],
        yerr=bars[1],
        fmt="o",
        color=colour,
        ecolor=style.colour(1),
        markerfacecolor="white" if row.warnings else colour,
        markersize=6,
        elinewidth=0.9,
        label=style.label(row.name),
    )
    if row.claimed is not None:
        axes.plot(100 * clean.value, row.claimed, marker="_", color=colour, markersize=14, linestyle="none")

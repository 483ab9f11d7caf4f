"""Clean against robust accuracy: a point a defense, with both intervals; what is claimed beside it, hollow."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robench.records.record import Record
from robench.records.store import slug
from robench.reports.board import Row, Section, sections, shown_name
from robench.reports.formatting import suite_label
from robench.reports.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(records: Sequence[Record]) -> "dict[str, Figure]":
    """A picture for each two or more defenses that a board ranks together."""
    found = {}
    for section in sections(records):
        for group in section.groups:
            if len({shown_name(row.record) for row in group}) > 1:
                record = group[0].record
                name = slug(f"{section.protocol}-{record.job.suite.name}-{record.job.knowledge}")
                found[name] = _draw(section, group)
    return found


def _draw(section: Section, group: tuple[Row, ...]) -> "Figure":
    figure = style.figure(7.6, 4.4, layout="constrained")
    axes = figure.subplots()
    axes.plot((0, 100), (0, 100), color=style.LINE, linewidth=1, zorder=0)
    note = {"fontsize": 8, "color": style.QUIET, "ha": "right", "va": "top", "textcoords": "offset points"}
    axes.annotate("nothing lost", (100, 100), (-26, 2), **note)
    for i, row in enumerate(group):
        _point(axes, i, row)
    lowest = min(100 * row.record.clean_accuracy.interval[0] for row in group)
    axes.set_xlim(max(0, 10 * (lowest // 10 - 1)), 102)
    axes.set_ylim(-2, 102)
    record = group[0].record
    told = f"{section.protocol} · {section.threat} · {suite_label(record).partition('+seed')[0]}"
    style.frame(axes, told, "clean accuracy, %", "robust accuracy, %")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), title=_told(group))
    return figure


def _told(group: tuple[Row, ...]) -> str:
    hollow = "\nhollow: doubtful" if any(row.marks for row in group) else ""
    return (
        "bars: 95 %" + hollow + ("\ndash: claimed" if any(row.claimed is not None for row in group) else "")
    )


def _point(axes: "Axes", i: int, row: Row) -> None:
    clean, robust = row.record.clean_accuracy, row.record.robust_accuracy
    bars = [[[100 * (a.value - a.interval[0])], [100 * (a.interval[1] - a.value)]] for a in (clean, robust)]
    doubt = " !" if row.marks else ""
    axes.errorbar(
        100 * clean.value,
        100 * robust.value,
        xerr=bars[0],
        yerr=bars[1],
        fmt=style.marker(i),
        color=style.colour(i),
        markerfacecolor="white" if row.marks else style.colour(i),
        markersize=7,
        elinewidth=1,
        label=style.literal(shown_name(row.record) + doubt),
    )
    if row.claimed is not None:
        axes.plot(
            100 * clean.value, row.claimed, marker="_", color=style.colour(i), markersize=14, linestyle="none"
        )

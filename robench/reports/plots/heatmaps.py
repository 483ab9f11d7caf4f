"""Heat maps: accuracy by two names, with a number in every cell."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from robench.records.record import Record
from robench.records.store import slug
from robench.reports.plots import style
from robench.reports.plots.settings import _free

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

WHITE_BOX = "itself"
_LONGEST = 40


def heat_map(
    cells: Mapping[tuple[str, str], float],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    x: str,
    y: str,
) -> "Figure":
    """A picture of `cells`, (row, column) -> accuracy in [0, 1]; missing cells are hatched."""
    return heat_maps({title: cells}, rows, columns, "", x, y)


def heat_maps(
    panels: Mapping[str, Mapping[tuple[str, str], float]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    x: str,
    y: str,
) -> "Figure":
    """Several heat maps of the same rows and columns side by side, each under its name; else as `heat_map`."""
    # Names take their room beside and beneath the cells: about 0.08 inches a letter, the lower ones aslant.
    beside, beneath = (0.08 * min(max(map(len, names), default=0), _LONGEST) for names in (rows, columns))
    each = 0.6 * len(columns) + (0.5 if len(panels) > 1 else 0)
    width, height = 2.2 + beside + len(panels) * each, 1.3 + 0.6 * beneath + 0.4 * len(rows)
    figure = style.figure(max(width, 4.5), height + (0.3 if title else 0), layout="constrained")
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    shown = None
    for i, (axes, (name, cells)) in enumerate(zip(drawn, panels.items(), strict=True)):
        shown = _fill(axes, cells, rows, columns)
        style.frame(axes, name, x, "" if i else y)
        axes.set_yticks(range(len(rows)), [""] * len(rows) if i else map(_short, rows))
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    if title:
        figure.suptitle(style.literal(title), fontsize=11, x=0.01, ha="left")
    assert shown is not None
    figure.colorbar(shown, ax=list(drawn), label="accuracy, %", shrink=0.9).outline.set_visible(False)
    return figure


def _fill(
    axes: "Axes", cells: Mapping[tuple[str, str], float], rows: Sequence[str], columns: Sequence[str]
) -> "AxesImage":
    import numpy as np

    values = np.array([[100 * cells.get((row, column), np.nan) for column in columns] for row in rows])
    axes.patch.set(hatch="////", edgecolor=style.LINE)
    shown = axes.imshow(np.ma.masked_invalid(values), cmap=style.SHADES, vmin=0, vmax=100, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            ink = "black" if value > 55 else "white"
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=9, color=ink)
    axes.set_xticks(
        range(len(columns)), map(style.literal, columns), rotation=35, ha="right", rotation_mode="anchor"
    )
    return shown


def _short(name: str) -> str:
    return style.literal(name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…")


def transfer(records: Sequence[Record]) -> "dict[str, Figure]":
    """Rows are attacked defenses, columns the networks that attacks were made on, the defense itself first."""
    tables: dict[tuple, dict[tuple[str, str], Record]] = {}
    for record in records:
        job = record.job
        level, _, source = job.knowledge.partition(":")
        if level in ("full", "transfer"):
            place = (job.protocol, job.threat, job.suite.name, job.dataset.digest, job.seed)
            tables.setdefault(place, {})[job.defense.name, source or WHITE_BOX] = record
    found = {}
    for (protocol, threat, suite, *_), own in sorted(tables.items()):
        sources = sorted({source for _, source in own if source != WHITE_BOX})
        if sources:
            cells = {key: record.robust_accuracy.value for key, record in own.items()}
            rows, title = sorted({name for name, _ in own}), f"{protocol} · {threat} · {suite}"
            figure = heat_map(cells, rows, [WHITE_BOX, *sources], title, "attack made on", "defense")
            found[_free(found, f"{protocol}-{suite}")] = figure
    return found


def data_sets(records: Sequence[Record]) -> "dict[str, Figure]":
    """Purifiers with classifiers of other data sets: one picture per family, one panel per attacker knowledge."""
    from robench.reports.dataset_transfer import matrices, picture

    return {slug(matrix.family): picture(matrix) for matrix in matrices(records)}

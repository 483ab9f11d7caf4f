"""Heat maps: accuracy by two names, with a number in every cell."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from robench.records.record import Record
from robench.records.store import slug
from robench.reports.plots import style
from robench.reports.plots.settings import unused_name
from robench.threats.knowledge import Knowledge

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

WHITE_BOX = "itself"
_LONGEST = 60


def heat_maps(
    panels: Mapping[str, Mapping[tuple[str, str], float]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    x: str,
    y: str,
) -> "Figure":
    """Heat maps with the same rows and columns side by side, each with its name as title.

    Args:
        panels: name -> (row, column) -> accuracy in [0, 1]. Missing cells are hatched.
    """
    # Space for the names beside and below the cells: about 0.08 inches per letter. Those below are rotated.
    left, bottom = (0.08 * min(max(map(len, names), default=0), _LONGEST) for names in (rows, columns))
    panel_width = 0.6 * len(columns) + (0.5 if len(panels) > 1 else 0)
    width, height = 2.2 + left + len(panels) * panel_width, 1.3 + 0.6 * bottom + 0.4 * len(rows)
    figure = style.figure(max(width, 4.5), height + (0.3 * len(title.splitlines())), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    image = None
    for i, (axes, (name, cells)) in enumerate(zip(all_axes, panels.items(), strict=True)):
        image = _fill(axes, cells, rows, columns)
        style.frame(axes, name, x, "" if i else y)
        axes.set_yticks(range(len(rows)), [""] * len(rows) if i else map(_short, rows))
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    if title:
        figure.suptitle(style.literal(title), fontsize=11, x=0.01, ha="left")
    assert image is not None
    figure.colorbar(image, ax=list(all_axes), label="accuracy, %", shrink=0.9).outline.set_visible(False)
    return figure


def _fill(
    axes: "Axes", cells: Mapping[tuple[str, str], float], rows: Sequence[str], columns: Sequence[str]
) -> "AxesImage":
    import numpy as np

    values = np.array([[100 * cells.get((row, column), np.nan) for column in columns] for row in rows])
    axes.patch.set(hatch="////", edgecolor=style.LINE)
    image = axes.imshow(np.ma.masked_invalid(values), cmap=style.SHADES, vmin=0, vmax=100, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "black" if value > 55 else "white"
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(
        range(len(columns)), map(style.literal, columns), rotation=35, ha="right", rotation_mode="anchor"
    )
    return image


def _short(name: str) -> str:
    return style.literal(name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…")


def transfer(records: Sequence[Record]) -> "dict[str, Figure]":
    """Rows are the attacked defenses, columns the networks that the attacks use, with the defense itself first."""
    tables: dict[tuple, dict[tuple[str, str], Record]] = {}
    for record in records:
        job = record.job
        knowledge = Knowledge.of(job.knowledge)
        if knowledge.name in ("full", "transfer"):
            place = (job.protocol, job.threat, job.suite.name, job.dataset.digest, job.seed)
            tables.setdefault(place, {})[job.defense.name, knowledge.defense or WHITE_BOX] = record
    figures = {}
    for (protocol, threat, suite, *_), by_source in sorted(tables.items()):
        sources = sorted({source for _, source in by_source if source != WHITE_BOX})
        if sources:
            cells = {key: record.robust_accuracy.value for key, record in by_source.items()}
            rows = sorted({name for name, _ in by_source})
            title = f"Accuracy under attacks on each network\n{protocol} · {threat} · {suite}"
            figure = heat_maps({"": cells}, rows, [WHITE_BOX, *sources], title, "attacked network", "defense")
            figures[unused_name(figures, f"{protocol}-{suite}")] = figure
    return figures


def datasets(records: Sequence[Record]) -> "dict[str, Figure]":
    """Purifiers with classifiers of other datasets: one figure per family, one panel per attacker knowledge."""
    from robench.reports.dataset_transfer import matrices, picture

    return {slug(matrix.family): picture(matrix) for matrix in matrices(records)}

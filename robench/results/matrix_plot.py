"""Matrices of accuracies side by side, each number in its cell, as a PNG that reads in grey as in colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from robench.files import write_whole
from robench.results.wording import plain

# Dark text on light cells; where it turns, in parts of the scale.
_DARK = 0.55
_CELL = (1.15, 0.5)  # inches


@dataclass(frozen=True)
class Panel:
    """One matrix.

    Attributes:
        title: above it.
        rows, columns: their names, of one line or more.
        values: accuracies in [0, 1], a tuple a row; None for a cell that nobody has filled.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def draw(
    panels: Sequence[Panel],
    title: str,
    path: Path,
    axes: tuple[str, str] = ("tested on", "trained on"),
    dpi: int = 150,
) -> Path:
    """Write the panels, which share their rows and columns, in one row to `path`.

    Args:
        axes: what columns and rows are.

    Raises:
        ResourceError: when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = panels[0].rows, panels[0].columns
    label = max(len(line) for name in rows for line in name.split("\n")) * 0.085 + 0.5
    width = label + len(panels) * (max(1.6, len(columns) * _CELL[0]) + 0.25)
    height = 1.7 + len(rows) * _CELL[1]
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for i, (panel, place) in enumerate(zip(panels, drawn, strict=True)):
        shown = [[float("nan") if v is None else 100 * v for v in row] for row in panel.values]
        place.imshow(shown, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for y, row in enumerate(panel.values):
            for x, value in enumerate(row):
                text = "–" if value is None else f"{100 * value:.0f}"
                loud = value is not None and value > _DARK
                place.text(
                    x, y, text, ha="center", va="center", fontsize=11, color="white" if loud else "#1b1f24"
                )
        place.set_title(_safe(panel.title), fontsize=10)
        place.set_xticks(range(len(columns)), [_safe(name) for name in columns], fontsize=7.5)
        place.set_yticks(
            range(len(rows)), [_safe(name) for name in rows] if i == 0 else [""] * len(rows), fontsize=9
        )
        place.tick_params(length=0)
        place.set_xlabel(axes[0], fontsize=9)
        if i == 0:
            place.set_ylabel(axes[1], fontsize=9)
        for spine in place.spines.values():
            spine.set_visible(False)
    figure.suptitle(_safe(title), fontsize=11, x=0.01, ha="left")
    buffer = BytesIO()
    # No date and no version in the file: the same records give the same picture.
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    write_whole(path.parent, {path.name: buffer.getvalue()})
    return path


def _safe(text: str) -> str:
    return "\n".join(plain(line) for line in text.split("\n")).replace("$", r"\$")

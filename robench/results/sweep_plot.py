"""Curves of accuracy over a setting, with their intervals, as a PNG that reads in grey as in colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from robench.files import write_whole
from robench.results.wording import plain

# Okabe and Ito's colours, told apart by the colour-blind; the markers and dashes tell them apart in grey.
_STYLES = (
    ("#000000", "o", "-"),
    ("#0072B2", "s", "--"),
    ("#D55E00", "^", "-."),
    ("#009E73", "D", ":"),
    ("#CC79A7", "v", "-"),
    ("#E69F00", "P", "--"),
)


@dataclass(frozen=True)
class Point:
    """x, and an accuracy in [0, 1] with its interval."""

    x: float
    y: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """Points in rising order of x, under a name."""

    name: str
    points: Sequence[Point]


def draw(curves: Sequence[Curve], axis: str, title: str, path: Path, dpi: int = 150) -> Path:
    """Write the curves over `axis` to `path`.

    Raises:
        ResourceError: when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for i, curve in enumerate(curves):
        colour, marker, dashes = _STYLES[i % len(_STYLES)]
        x, y = [p.x for p in curve.points], [100 * p.y for p in curve.points]
        low, high = ([100 * p.interval[end] for p in curve.points] for end in (0, 1))
        axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
        # A band's edges are dashed as its line is: where bands overlap in grey, one still sees whose is whose.
        for edge in (low, high):
            axes.plot(x, edge, color=colour, linestyle=dashes, linewidth=0.7, alpha=0.6)
        line = {"color": colour, "linestyle": dashes, "linewidth": 1.6}
        axes.plot(x, y, marker=marker, markersize=5, label=plain(curve.name), **line)
    values = sorted({p.x for curve in curves for p in curve.points})
    if values[0] > 0 and values[-1] / values[0] >= 20:
        axes.set_xscale("log")
    if len(values) <= 12:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    axes.set_ylim(-2, 102)
    axes.set_xlabel(plain(axis).replace("$", r"\$"))
    axes.set_ylabel("accuracy, % (bands: 95 %)")
    axes.set_title(plain(title).replace("$", r"\$"), fontsize=10, loc="left")
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    write_whole(path.parent, {path.name: buffer.getvalue()})
    return path

"""Curves of accuracy over a setting, with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robench.reports.plots import style
from robench.statistics.accuracy import Accuracy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """x, and an accuracy in [0, 1] with its interval."""

    x: float
    y: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, x: float, accuracy: Accuracy) -> "Point":
        return cls(x, accuracy.value, accuracy.interval)


@dataclass(frozen=True)
class Curve:
    """Named points in increasing order of x."""

    name: str
    points: Sequence[Point]


def draw(curves: Sequence[Curve], axis: str, title: str) -> "Figure":
    """The curves over `axis`, in percent, with bands for their intervals."""
    figure = style.figure(6.4, 4.0, layout="constrained")
    axes = figure.subplots()
    for i, curve in enumerate(curves):
        x, y = [p.x for p in curve.points], [100 * p.y for p in curve.points]
        low, high = ([100 * p.interval[end] for p in curve.points] for end in (0, 1))
        colour, dash = style.colour(i), style.dash(i)
        axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
        # The edges of a band are dashed like its line, so that overlapping bands stay distinguishable in grey.
        for edge in (low, high):
            axes.plot(x, edge, color=colour, linestyle=dash, linewidth=0.7, alpha=0.6)
        label = style.literal(curve.name)
        axes.plot(
            x,
            y,
            color=colour,
            linestyle=dash,
            marker=style.marker(i),
            markersize=5,
            linewidth=1.6,
            label=label,
        )
    values = sorted({p.x for curve in curves for p in curve.points})
    smallest = next((value for value in values if value > 0), 1.0)
    if len(values) > 1 and values[0] >= 0 and values[-1] / smallest >= 20:
        # A logarithmic axis has no zero, so use a linear range up to the smallest positive value.
        if values[0] > 0:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=smallest)
    if len(values) <= 12:
        axes.set_xticks(values, [f"{value:.4g}" for value in values])
        axes.minorticks_off()
    axes.set_ylim(-2, 102)
    style.frame(axes, title, axis, "accuracy, % (bands: 95 %)")
    axes.legend(frameon=False, fontsize=9)
    return figure

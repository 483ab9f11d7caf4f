"""Curves of accuracy over a setting, with their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robench.records.record import Record
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


def by_level(levels: Mapping[str, Mapping[float, Record]]) -> list[Curve]:
    """A curve for clean accuracy, and one for robust accuracy for each attacker knowledge.

    Args:
        levels: attacker knowledge -> value of the setting -> record.
    """
    clean = {value: record.clean_accuracy for records in levels.values() for value, record in records.items()}
    curves = {"clean": clean} | {
        f"robust, {level}": {value: record.robust_accuracy for value, record in records.items()}
        for level, records in levels.items()
    }
    return [
        Curve(name, [Point.of(*point) for point in sorted(points.items())]) for name, points in curves.items()
    ]


def draw(curves: Sequence[Curve], axis: str, title: str) -> "Figure":
    """The curves over `axis`, in percent, with bands for their intervals."""
    figure = style.figure(6.4, 4.0, layout="constrained")
    axes = figure.subplots()
    for i, curve in enumerate(curves):
        x, y = [p.x for p in curve.points], [100 * p.y for p in curve.points]
        low, high = ([100 * p.interval[end] for p in curve.points] for end in (0, 1))
        colour, dash = style.colour(i), style.dash(i)
        axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
        # The edges of a band are dashed like its line, so that overlapping bands stay distinguishable in gray.
        for edge in (low, high):
            axes.plot(x, edge, color=colour, linestyle=dash, linewidth=0.7, alpha=0.6)
        look = {
            "color": colour,
            "linestyle": dash,
            "marker": style.marker(i),
            "markersize": 5,
            "linewidth": 1.6,
        }
        axes.plot(x, y, label=style.label(curve.name), **look)
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

"""SVG coordinates for the charts of the pages: robust against clean accuracy, and robust accuracy over the radius."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from robench.core.sanitize import plain
from robench.reports.labels import place_labels, short_names
from robench.reports.security_curve import Curve

WIDE = 640, 360
# For phones, where a wide chart would shrink its letters to half their size.
NARROW = 340, 320
# The fewest parts into which the ticks divide the horizontal axis.
_PARTS = {WIDE: 4, NARROW: 2}
# Margins for the numbers beside the axes.
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 12, 48
# Width of a letter and height of a line of a label.
_LETTER, _LINE = 6.6, 15


@dataclass(frozen=True)
class Mark:
    """A point; `label` is the position of its label, or None if there is no room."""

    x: float
    y: float
    text: str
    link: str = ""
    hollow: bool = False
    bars: tuple[float, float, float, float] | None = None
    label: tuple[float, float] | None = None
    name: str = ""


@dataclass(frozen=True)
class Line:
    """A curve: its name, its points in SVG syntax, and the number of its style."""

    name: str
    points: str
    style: int
    label: tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """The content of an SVG.

    Attributes:
        size: width and height.
        narrow: the same chart for narrow screens.
    """

    title: str
    x_name: str
    y_name: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    marks: tuple[Mark, ...] = ()
    lines: tuple[Line, ...] = ()
    size: tuple[int, int] = WIDE
    narrow: "Chart | None" = None


def scatter(lines: Sequence, title: str) -> Chart | None:
    """One point per defense, zoomed to the data; None for fewer than two defenses."""
    if len(lines) < 2:
        return None
    return replace(_scatter(lines, title, WIDE), narrow=_scatter(lines, title, NARROW))


def _scatter(lines: Sequence, title: str, size: tuple[int, int]) -> Chart:
    width, height = size
    clean = [end for line in lines for end in (line.clean.low, line.clean.high)]
    robust = [end for line in lines for end in (line.robust.low, line.robust.high)]
    x_axis = _Axis(clean, LEFT, width - RIGHT, _PARTS[size])
    y_axis = _Axis(robust, height - BOTTOM, TOP, 4)
    positions = [(x_axis(line.clean.value), y_axis(line.robust.value)) for line in lines]
    shifted = [(x - LEFT, y - TOP) for x, y in positions]
    sizes = [(_LETTER * len(line.short), _LINE) for line in lines]
    # The ends of the intervals, and both as lines through the point.
    bars = [
        (x_axis(line.clean.low), x_axis(line.clean.high), y_axis(line.robust.low), y_axis(line.robust.high))
        for line in lines
    ]
    crosses = [
        cross
        for (x, y), (left, right, low, high) in zip(shifted, bars, strict=True)
        for cross in ((left - LEFT, y - 1, right - LEFT, y + 1), (x - 1, high - TOP, x + 1, low - TOP))
    ]
    corners = place_labels(shifted, sizes, (width - LEFT - RIGHT, height - TOP - BOTTOM), crosses)
    marks = []
    for line, (x, y), corner, ends in zip(lines, positions, corners, bars, strict=True):
        figures = f"clean {line.clean.text} % {line.clean.interval}, robust {line.robust.text} % {line.robust.interval}"
        label = (corner[0] + LEFT, corner[1] + TOP + 0.75 * _LINE) if corner else None
        link, warned = f"defense/{line.page}#{line.anchor}", bool(line.row.warnings)
        text = f"{plain(line.name)}: {figures}"
        marks.append(Mark(x, y, text, link, warned, ends, label, plain(line.short)))
    names = "clean accuracy, %", "robust accuracy, %"
    return Chart(title, *names, x_axis.ticks, y_axis.ticks, tuple(marks), size=size)


def curves(series: Sequence[Curve], title: str, axis: str) -> Chart | None:
    """Robust accuracy over the radius, starting with clean accuracy at 0."""
    if not series:
        return None
    return replace(_curves(series, title, axis, WIDE), narrow=_curves(series, title, axis, NARROW))


def _curves(series: Sequence[Curve], title: str, axis: str, size: tuple[int, int]) -> Chart:
    width, height = size
    radii = [point.eps for curve in series for point in curve.points]
    x_axis = _Axis(radii, LEFT, width - RIGHT, _PARTS[size], whole=False)
    y_axis = _Axis([0, 100], height - BOTTOM, TOP, 4)
    marks, lines = [], []
    names = [c.attack if c.knowledge == "full" else f"{c.attack}@{c.knowledge}" for c in series]
    labels = names if size == WIDE else short_names(names)
    for number, (curve, name) in enumerate(zip(series, names, strict=True)):
        positions = [(x_axis(p.eps), y_axis(100 * p.accuracy.value)) for p in curve.points]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in positions)
        corner = (width - RIGHT - 8, TOP + 16 + 16 * number)
        lines.append(Line(plain(labels[number]), points, number % 4, corner))
        for point, (x, y) in zip(curve.points, positions, strict=True):
            description = "clean" if point.eps == 0 else f"radius {point.radius}, robust"
            marks.append(Mark(x, y, f"{plain(name)}: {description} {100 * point.accuracy.value:.2f} %"))
    return Chart(title, axis, "accuracy, %", x_axis.ticks, y_axis.ticks, tuple(marks), tuple(lines), size)


class _Axis:
    """Map values to page coordinates, with round ticks. Percentages are clipped to [0, 100]."""

    def __init__(self, values: Sequence[float], start: float, end: float, parts: int, whole: bool = True):
        low, high = min(values), max(values)
        step = _step((high - low) or 1.0, parts)
        self._low, self._high = math.floor(low / step) * step, math.ceil(high / step) * step
        if whole:
            self._low, self._high = max(0.0, self._low), min(100.0, self._high)
        if self._high <= self._low:
            self._high = self._low + step
        self._start, self._end = start, end
        count = round((self._high - self._low) / step)
        values = [self._low + i * step for i in range(count + 1)]
        self.ticks = tuple(
            (round(self(value), 1), f"{value:.6g}") for value in values if value <= self._high + 1e-9
        )

    def __call__(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return round(self._start + share * (self._end - self._start), 1)


def _step(span: float, parts: int) -> float:
    """A round step that divides a span into `parts` parts, or up to two and a half times as many."""
    unit = 10 ** math.floor(math.log10(span / parts))
    return max(unit * factor for factor in (1, 2, 2.5, 5) if unit * factor <= span / parts * 1.0000001)

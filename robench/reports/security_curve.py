"""Security curves from records, as a table and a plot; see robench.evaluation.security_curve."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robench.core.grouping import grouped
from robench.records.estimate import NOT_ATTACKED
from robench.records.record import Job, Record
from robench.records.samples import read_samples
from robench.records.store import slug
from robench.reports.formatting import figure as figure_text
from robench.reports.notes import warning_notes
from robench.reports.plots import curves as plotted
from robench.reports.plots.style import save
from robench.reports.table import Grid
from robench.statistics.accuracy import Accuracy
from robench.threats.threat import Threat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("defense", "attack", "knowledge")


@dataclass(frozen=True)
class Point:
    """One radius of a curve.

    Attributes:
        radius, eps: the radius as text and as a number.
        accuracy: clean at radius 0, else robust with respect to all certificates.
        carried: number of images with an adversarial example only from the run at another radius; None without a run.
        record: the record of the run at this radius, if there is one.
    """

    radius: str
    eps: float
    accuracy: Accuracy
    carried: int | None = None
    record: Record | None = None


@dataclass(frozen=True)
class Curve:
    """The curve of one defense, suite and attacker knowledge."""

    defense: str
    attack: str
    knowledge: str
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """The curve for JSON. A point has the folder of its record."""
        points = [
            {
                "radius": point.radius,
                "eps": point.eps,
                "accuracy": asdict(point.accuracy),
                "carried": point.carried,
                "record": str(point.record.folder) if point.record else None,
            }
            for point in self.points
        ]
        return {"defense": self.defense, "attack": self.attack, "knowledge": self.knowledge, "points": points}


def curves(radii: Sequence[str], records: Sequence[Record]) -> list[Curve]:
    """The curves of records, in order of first appearance.

    Args:
        radii: as in threats, in increasing order; "0" means clean accuracy.
    """
    series = grouped(records, lambda r: (r.job.defense.name, r.job.suite.name, r.job.knowledge))
    return [Curve(*names, _points(radii, members)) for names, members in series.items()]


def grid(series: list[Curve]) -> Grid:
    """The curves as a table. What they have in common is in the title."""
    job = _job(series)
    varying, common = _split(series)
    carries = any(point.carried is not None for curve in series for point in curve.points)
    groups = tuple(
        tuple(
            (
                *(getattr(curve, name) for name in varying),
                point.radius,
                figure_text(point.accuracy),
                *(["" if point.carried is None else str(point.carried)] if carries else []),
                "!" if point.record and point.record.health else "",
            )
            for point in curve.points
        )
        for curve in series
    )
    warnings = warning_notes(
        (", ".join(getattr(curve, name) for name in varying), point.radius, point.record.health)
        for curve in series
        for point in curve.points
        if point.record
    )
    carried_note = "carried: images whose adversarial example is from the run at another radius"
    return Grid(
        title=" · ".join([*common, job.dataset.name, job.threat_model.kind, f"n = {job.n}"]),
        columns=(*varying, "radius", "accuracy %", *(["carried"] if carries else []), "warnings"),
        groups=groups,
        names=frozenset(varying),
        numbers=frozenset(("radius", "accuracy %", "carried")),
        notes=(carried_note if carries else f"read from one run at {job.threat}", *warnings),
    )


def picture(series: list[Curve], results: Path | str) -> Path:
    """Write the curves as a PNG to `results`/curves/.

    Raises:
        ResourceError: when the file cannot be written.
    """
    job = _job(series)
    kind = job.threat_model.kind
    names = [name for kind in NAMES for name in _values(series, kind)]
    file = slug("-".join([job.dataset.name, kind, f"n{job.n}", *names, *(p.radius for p in _ends(series))]))
    return save(figure(series), Path(results) / "curves" / f"{file}.png")


def figure(series: list[Curve]) -> "Figure":
    """The curves as a plot. What they have in common is in the title."""
    job = _job(series)
    units = {point.radius.partition("/")[2] for point in series[0].points if point.eps}
    # Radii with a common denominator use it as unit: 8 on the axis is 8/255.
    unit = units.pop() if len(units) == 1 else ""
    scale = float(Fraction(unit)) if unit else 1.0
    varying, common = _split(series)
    lines = [
        plotted.Curve(
            ", ".join(getattr(curve, name) for name in varying or NAMES[:1]),
            [plotted.Point.of(point.eps * scale, point.accuracy) for point in curve.points],
        )
        for curve in series
    ]
    axis = f"{job.threat_model.kind} radius" + (f", in 1/{unit}" if unit else "")
    title = f"Robust accuracy over the {job.threat_model.kind} radius: {job.dataset.name}, {job.n:,} images"
    return plotted.draw(lines, axis, "\n".join([title, " · ".join(common)]).strip())


def _points(radii: Sequence[str], records: list[Record]) -> tuple[Point, ...]:
    """The curve of one series of records."""
    kind = records[0].job.threat_model.kind
    # (records, n): the distance of the adversarial example of each run, infinite if there is none.
    distances = np.array([_distances(record) for record in records])
    smallest = distances.min(0)
    by_radius = {record.job.threat_model.eps: record for record in records}
    points = []
    for text in radii:
        if text == "0":
            points.append(Point(text, 0.0, records[0].clean_accuracy))
            continue
        threat = Threat.parse(f"{kind}:{text}")
        correct = int((smallest > threat.reach).sum())
        record = by_radius.get(threat.eps)
        carried = record.robust_accuracy.correct - correct if record and len(records) > 1 else None
        points.append(Point(text, threat.eps, Accuracy.of(correct, len(smallest)), carried, record))
    return tuple(points)


def _distances(record: Record) -> list[float]:
    """The distance of the adversarial example of each sample, infinite if there is none."""
    assert record.folder is not None
    rows = read_samples(record.folder).to_pydict()
    return [
        np.inf if attack in ("", NOT_ATTACKED) else distance
        for attack, distance in zip(rows["fooled_by"], rows["distance"], strict=True)
    ]


def _job(series: list[Curve]) -> Job:
    return next(point.record for curve in series for point in curve.points if point.record).job


def _values(series: list[Curve], name: str) -> list[str]:
    """The different values of a field, in order."""
    return list(dict.fromkeys(getattr(curve, name) for curve in series))


def _split(series: list[Curve]) -> tuple[list[str], list[str]]:
    """The fields in which curves differ, and the values of the others."""
    values = {name: _values(series, name) for name in NAMES}
    varying = [name for name in NAMES if len(values[name]) > 1]
    return varying, [values[name][0] for name in NAMES if name not in varying]


def _ends(series: list[Curve]) -> tuple[Point, Point]:
    return series[0].points[0], series[0].points[-1]

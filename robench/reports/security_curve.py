"""Security curves from records, as table and picture; see robench.evaluation.security_curve."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from robench.records.record import Job, Record
from robench.records.samples import read_samples
from robench.records.store import slug
from robench.reports.plots import curves as plotted
from robench.reports.plots.style import save
from robench.reports.table import Grid
from robench.statistics.accuracy import Accuracy, interval, percent
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
        carried: images that only a certificate of another radius fools here; None without a run.
        record: the record of the run at this radius, if any.
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
        return {
            "defense": self.defense,
            "attack": self.attack,
            "knowledge": self.knowledge,
            "points": points,
        }


def curves(radii: Sequence[str], records: Sequence[Record]) -> list[Curve]:
    """The curves of records, in order of first appearance.

    Args:
        radii: as in threats, in increasing order; "0" means clean accuracy.
    """
    series: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        job = record.job
        series.setdefault((job.defense.name, job.suite.name, job.knowledge), []).append(record)
    return [Curve(*names, _points(radii, members)) for names, members in series.items()]


def grid(found: list[Curve]) -> Grid:
    """The curves as a table. What they have in common is in the title."""
    job = _job(found)
    varying = [name for name in NAMES if len(_values(found, name)) > 1]
    same = [_values(found, name)[0] for name in NAMES if name not in varying]
    carries = any(point.carried is not None for curve in found for point in curve.points)
    groups = tuple(
        tuple(
            (
                *(getattr(curve, name) for name in varying),
                point.radius,
                f"{percent(point.accuracy)} {interval(point.accuracy)}",
                *(["" if point.carried is None else str(point.carried)] if carries else []),
                "!" if point.record and point.record.health else "",
            )
            for point in curve.points
        )
        for curve in found
    )
    warnings = [
        f"! {', '.join([*(getattr(curve, name) for name in varying), point.radius])}: {warning.code}: {warning.text}"
        for curve in found
        for point in curve.points
        for warning in (point.record.health if point.record else ())
    ]
    carried_note = "carried: images that only a certificate of another radius fools"
    return Grid(
        title=" · ".join([*same, job.dataset.name, job.threat_model.kind, f"n = {job.n}"]),
        columns=(*varying, "radius", "accuracy %", *(["carried"] if carries else []), "warnings"),
        groups=groups,
        names=frozenset(varying),
        numbers=frozenset(("radius", "accuracy %", "carried")),
        notes=(carried_note if carries else f"read from one run at {job.threat}", *dict.fromkeys(warnings)),
    )


def picture(found: list[Curve], results: Path | str) -> Path:
    """Write the curves as PNG into `results`/curves/.

    Raises:
        ResourceError: when the file cannot be written.
    """
    job = _job(found)
    kind = job.threat_model.kind
    names = [name for kind in NAMES for name in _values(found, kind)]
    file = slug("-".join([job.dataset.name, kind, f"n{job.n}", *names, *(p.radius for p in _ends(found))]))
    return save(figure(found), Path(results) / "curves" / f"{file}.png")


def figure(found: list[Curve]) -> "Figure":
    """The curves as a picture. What they have in common is in the title."""
    job = _job(found)
    units = {point.radius.partition("/")[2] for point in found[0].points if point.eps}
    # Radii with a common denominator use it as unit: 8 on the axis is 8/255.
    unit = units.pop() if len(units) == 1 else ""
    scale = float(Fraction(unit)) if unit else 1.0
    varying = [name for name in NAMES if len(_values(found, name)) > 1]
    same = [_values(found, name)[0] for name in NAMES if name not in varying]
    drawn = [
        plotted.Curve(
            ", ".join(getattr(curve, name) for name in varying or NAMES[:1]),
            [plotted.Point.of(point.eps * scale, point.accuracy) for point in curve.points],
        )
        for curve in found
    ]
    axis = f"{job.threat_model.kind} radius" + (f", in 1/{unit}" if unit else "")
    return plotted.draw(drawn, axis, " · ".join([*same, job.dataset.name, f"n = {job.n}"]))


def _points(radii: Sequence[str], records: list[Record]) -> tuple[Point, ...]:
    """The curve of one series of records."""
    kind = records[0].job.threat_model.kind
    # (records, n): distance of each run's adversarial example, infinite where there is none.
    distances = torch.tensor([_distances(record) for record in records], dtype=torch.float64)
    least = distances.amin(0)
    by_radius = {record.job.threat_model.eps: record for record in records}
    points = []
    for text in radii:
        if text == "0":
            points.append(Point(text, 0.0, records[0].clean_accuracy))
            continue
        threat = Threat.parse(f"{kind}:{text}")
        correct = int((least > threat.reach).sum())
        record = by_radius.get(threat.eps)
        carried = record.robust_accuracy.correct - correct if record and len(records) > 1 else None
        points.append(Point(text, threat.eps, Accuracy.of(correct, len(least)), carried, record))
    return tuple(points)


def _distances(record: Record) -> list[float]:
    """The distance of each sample's adversarial example, infinite where there is none."""
    assert record.folder is not None
    rows = read_samples(record.folder).to_pydict()
    return [far if by else torch.inf for by, far in zip(rows["fooled_by"], rows["distance"], strict=True)]


def _job(found: list[Curve]) -> Job:
    return next(point.record for curve in found for point in curve.points if point.record).job


def _values(found: list[Curve], name: str) -> list[str]:
    """The different values of a field, in order."""
    return list(dict.fromkeys(getattr(curve, name) for curve in found))


def _ends(found: list[Curve]) -> tuple[Point, Point]:
    return found[0].points[0], found[0].points[-1]

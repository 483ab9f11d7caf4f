"""Security curves read from records, as table and picture; see robench.evaluation.security_curve."""

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
        radius, eps: as written, and as a number.
        accuracy: clean at radius 0, else robust by all certificates.
        carried: images that fall here by another radius's certificate alone; None where no run was made.
        record: of the run at this radius, if there is one.
    """

    radius: str
    eps: float
    accuracy: Accuracy
    carried: int | None = None
    record: Record | None = None


@dataclass(frozen=True)
class Curve:
    """One defense under one suite, with one level of knowledge."""

    defense: str
    attack: str
    knowledge: str
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a point names the folder of its record."""
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
    """The curves of records, in the order in which they first appear.

    Args:
        radii: as in threats, in rising order; "0" is for clean accuracy.
    """
    series: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        job = record.job
        series.setdefault((job.defense.name, job.suite.name, job.knowledge), []).append(record)
    return [Curve(*names, _points(radii, own)) for names, own in series.items()]


def grid(found: list[Curve]) -> Grid:
    """The curves as a table; what is the same in all of them stands in its title."""
    job = _job(found)
    told = [name for name in NAMES if len(_each(found, name)) > 1]
    same = [_each(found, name)[0] for name in NAMES if name not in told]
    carries = any(point.carried is not None for curve in found for point in curve.points)
    groups = tuple(
        tuple(
            (
                *(getattr(curve, name) for name in told),
                point.radius,
                f"{percent(point.accuracy)} {interval(point.accuracy)}",
                *(["" if point.carried is None else str(point.carried)] if carries else []),
                "!" if point.record and point.record.health else "",
            )
            for point in curve.points
        )
        for curve in found
    )
    marks = [
        f"! {', '.join([*(getattr(curve, name) for name in told), point.radius])}: {mark.code}: {mark.text}"
        for curve in found
        for point in curve.points
        for mark in (point.record.health if point.record else ())
    ]
    says = "carried: images that fall by the certificate of another radius alone"
    return Grid(
        title=" · ".join([*same, job.dataset.name, job.threat_model.kind, f"n = {job.n}"]),
        columns=(*told, "radius", "accuracy %", *(["carried"] if carries else []), "marks"),
        groups=groups,
        names=frozenset(told),
        numbers=frozenset(("radius", "accuracy %", "carried")),
        notes=(says if carries else f"read from one run at {job.threat}", *dict.fromkeys(marks)),
    )


def picture(found: list[Curve], results: Path | str) -> Path:
    """Write the curves as PNG into `results`/curves/.

    Raises:
        ResourceError: when the file cannot be written.
    """
    job = _job(found)
    kind = job.threat_model.kind
    names = [name for kind in NAMES for name in _each(found, kind)]
    file = slug("-".join([job.dataset.name, kind, f"n{job.n}", *names, *(p.radius for p in _ends(found))]))
    return save(figure(found), Path(results) / "curves" / f"{file}.png")


def figure(found: list[Curve]) -> "Figure":
    """The curves as a picture; what is the same in all of them stands in its title."""
    job = _job(found)
    units = {point.radius.partition("/")[2] for point in found[0].points if point.eps}
    # Radii of one denominator are told in that unit: 8 on the axis is 8/255.
    unit = units.pop() if len(units) == 1 else ""
    scale = float(Fraction(unit)) if unit else 1.0
    told = [name for name in NAMES if len(_each(found, name)) > 1]
    same = [_each(found, name)[0] for name in NAMES if name not in told]
    drawn = [
        plotted.Curve(
            ", ".join(getattr(curve, name) for name in told or NAMES[:1]),
            [plotted.Point.of(point.eps * scale, point.accuracy) for point in curve.points],
        )
        for curve in found
    ]
    axis = f"{job.threat_model.kind} radius" + (f", in 1/{unit}" if unit else "")
    return plotted.draw(drawn, axis, " · ".join([*same, job.dataset.name, f"n = {job.n}"]))


def _points(radii: Sequence[str], records: list[Record]) -> tuple[Point, ...]:
    """The curve of one series of records."""
    kind = records[0].job.threat_model.kind
    # (records, n): how far each run's image that fools is, infinite where it found none.
    distances = torch.tensor([_distances(record) for record in records], dtype=torch.float64)
    least = distances.amin(0)
    own = {record.job.threat_model.eps: record for record in records}
    points = []
    for text in radii:
        if text == "0":
            points.append(Point(text, 0.0, records[0].clean_accuracy))
            continue
        threat = Threat.parse(f"{kind}:{text}")
        correct = int((least > threat.reach).sum())
        record = own.get(threat.eps)
        carried = record.robust_accuracy.correct - correct if record and len(records) > 1 else None
        points.append(Point(text, threat.eps, Accuracy.of(correct, len(least)), carried, record))
    return tuple(points)


def _distances(record: Record) -> list[float]:
    """How far the image that fools is, for each sample; infinite where there is none."""
    assert record.folder is not None
    rows = read_samples(record.folder).to_pydict()
    return [far if by else torch.inf for by, far in zip(rows["fooled_by"], rows["distance"], strict=True)]


def _job(found: list[Curve]) -> Job:
    return next(point.record for curve in found for point in curve.points if point.record).job


def _each(found: list[Curve], name: str) -> list[str]:
    """The different values of a field, in order."""
    return list(dict.fromkeys(getattr(curve, name) for curve in found))


def _ends(found: list[Curve]) -> tuple[Point, Point]:
    return found[0].points[0], found[0].points[-1]

"""Curves over the radius, or over a setting of the defense."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from robench.core import specs
from robench.records.record import Record
from robench.records.store import slug
from robench.reports import security_curve as over_radius
from robench.reports.plots.curves import Curve, Point, draw
from robench.reports.series import defense_settings
from robench.threats.threat import COUNTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Smallest number of values of a curve.
_LEAST = 2
# A record of a minimum-norm attack covers every smaller radius: the number of steps to draw.
_BETWEEN = 8


def security(records: Sequence[Record]) -> "dict[str, Figure]":
    """Robust accuracy over the radius, from 0 (clean), one picture per attack.

    Draws one curve per defense with at least two radii, or with one record of a minimum-norm attack.

    Certificates count at every radius that contains them, so no curve increases.
    """
    tables: dict[tuple, dict[tuple, dict[float, Record]]] = {}
    for record in records:
        job = record.job
        if record.corrupted or record.folder is None:
            continue
        threat = job.threat_model
        place = (
            job.dataset.name,
            threat.kind,
            job.suite.name,
            job.knowledge,
            job.dataset.digest,
        )
        subject = (job.defense.name, job.defense.checkpoint_sha256, job.seed)
        tables.setdefault(place, {}).setdefault(subject, {})[threat.eps] = record
    found = {}
    for (dataset, norm, suite, knowledge, _), subjects in sorted(tables.items()):
        curves = []
        for (name, _, seed), own in sorted(subjects.items()):
            if radii := _radii(own):
                (curve,) = over_radius.curves(radii, list(own.values()))
                curves.append(replace(curve, defense=name + (f" (seed {seed})" if seed else "")))
        if curves:
            found[_free(found, f"{dataset}-{norm}-{suite}-{knowledge}")] = over_radius.figure(curves)
    return found


def _radii(own: dict[float, Record]) -> list[str]:
    """The radii of a curve: 0, the radius of each record, and steps between for a minimum-norm attack."""
    texts = [own[eps].job.threat_model.text for eps in sorted(own)]
    if len(own) >= _LEAST:
        return ["0", *texts]
    ((eps, record),) = own.items()
    least = all(specs.parse(spec).arguments.get("minimise") is True for spec in record.job.suite.attacks)
    if not least or record.job.threat_model.norm in COUNTED:
        return []
    return ["0", *(f"{eps * i / _BETWEEN:.6g}" for i in range(1, _BETWEEN)), *texts]


def trade_off(records: Sequence[Record]) -> "dict[str, Figure]":
    """Clean and robust accuracy over each setting that a defense was run with at two values or more."""
    tables: dict[tuple, dict[str, dict[float, Record]]] = {}
    for record in records:
        job = record.job
        for base, setting, value in defense_settings(job.defense.name):
            place = (
                base,
                setting,
                job.dataset.name,
                job.threat,
                job.suite.name,
                job.dataset.digest,
                job.seed,
            )
            tables.setdefault(place, {}).setdefault(job.knowledge, {})[value] = record
    found = {}
    for place, levels in sorted(tables.items()):
        levels = {level: own for level, own in sorted(levels.items()) if len(own) >= _LEAST}
        if levels:
            base, setting, _, threat, suite, *_ = place
            title = f"{base} under {suite}, {threat}"
            found[_free(found, f"{base}-{setting}-{suite}-{threat}")] = draw(_curves(levels), setting, title)
    return found


def _curves(levels: dict[str, dict[float, Record]]) -> list[Curve]:
    """Clean accuracy once, over all values; robust accuracy for each level of knowledge."""
    every = {value: record for own in levels.values() for value, record in own.items()}
    clean = Curve(
        "clean", [Point.of(value, record.clean_accuracy) for value, record in sorted(every.items())]
    )
    return [
        clean,
        *(
            Curve(
                f"robust, {level}", [Point.of(value, r.robust_accuracy) for value, r in sorted(own.items())]
            )
            for level, own in levels.items()
        ),
    ]


def _free(taken: "dict[str, Figure]", name: str) -> str:
    """The file name, with a number if it is already taken."""
    stem, count = slug(name), 1
    while (f"{stem}-{count}" if count > 1 else stem) in taken:
        count += 1
    return f"{stem}-{count}" if count > 1 else stem

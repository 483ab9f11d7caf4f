"""Curves over the radius, or over a setting of the defense."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from robench.core import specs
from robench.records.record import Record
from robench.records.store import slug
from robench.reports import security_curve as over_radius
from robench.reports.plots.curves import by_level, draw
from robench.reports.series import defense_settings
from robench.threats.threat import COUNTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Smallest number of values of a curve.
_LEAST = 2
# Number of steps to draw for a minimum-norm attack, whose record covers every smaller radius.
_BETWEEN = 8


def security(records: Sequence[Record]) -> "dict[str, Figure]":
    """Robust accuracy over the radius, starting with clean accuracy at 0; one figure per attack.

    There is a curve for each defense with records at two or more radii, or with one record of a minimum-norm attack.
    Certificates count at every radius that contains them, so no curve increases.
    """
    tables: dict[tuple, dict[tuple, dict[float, Record]]] = {}
    for record in records:
        job = record.job
        if record.corrupted or record.folder is None:
            continue
        threat = job.threat_model
        place = (job.dataset.name, threat.kind, job.suite.name, job.knowledge, job.dataset.digest)
        subject = (job.defense.name, job.defense.checkpoint_sha256, job.seed)
        tables.setdefault(place, {}).setdefault(subject, {})[threat.eps] = record
    figures = {}
    for (dataset, norm, suite, knowledge, _), subjects in sorted(tables.items()):
        curves = []
        for (name, _, seed), by_radius in sorted(subjects.items()):
            if radii := _radii(by_radius):
                (curve,) = over_radius.curves(radii, list(by_radius.values()))
                curves.append(replace(curve, defense=name + (f" (seed {seed})" if seed else "")))
        if curves:
            name = unused_name(figures, f"{dataset}-{norm}-{suite}-{knowledge}")
            figures[name] = over_radius.figure(curves)
    return figures


def _radii(by_radius: dict[float, Record]) -> list[str]:
    """The radii of a curve: 0, the radius of each record, and steps in between for a minimum-norm attack."""
    texts = [by_radius[eps].job.threat_model.text for eps in sorted(by_radius)]
    if len(by_radius) >= _LEAST:
        return ["0", *texts]
    ((eps, record),) = by_radius.items()
    parsed = map(specs.parse, record.job.suite.attacks)
    minimum_norm = all(spec.arguments.get("minimise") is True for spec in parsed)
    if not minimum_norm or record.job.threat_model.norm in COUNTED:
        return []
    return ["0", *(f"{eps * i / _BETWEEN:.6g}" for i in range(1, _BETWEEN)), *texts]


def trade_off(records: Sequence[Record]) -> "dict[str, Figure]":
    """Clean and robust accuracy over each setting of a defense with records at two or more values."""
    tables: dict[tuple, dict[str, dict[float, Record]]] = {}
    for record in records:
        job = record.job
        for base, setting, value in defense_settings(job.defense.name):
            images = (job.dataset.name, job.threat, job.suite.name, job.dataset.digest, job.seed)
            place = (base, setting, *images)
            tables.setdefault(place, {}).setdefault(job.knowledge, {})[value] = record
    figures = {}
    for place, levels in sorted(tables.items()):
        levels = {level: by_value for level, by_value in sorted(levels.items()) if len(by_value) >= _LEAST}
        if levels:
            base, setting, _, threat, suite, *_ = place
            title = f"Clean and robust accuracy over {setting}: {base} under {suite}, {threat}"
            name = unused_name(figures, f"{base}-{setting}-{suite}-{threat}")
            figures[name] = draw(by_level(levels), setting, title)
    return figures


def unused_name(taken: "dict[str, Figure]", name: str) -> str:
    """The file name, with a number if another figure has it."""
    stem, count = slug(name), 1
    while (f"{stem}-{count}" if count > 1 else stem) in taken:
        count += 1
    return f"{stem}-{count}" if count > 1 else stem

"""Curves over what differs between records alone: the radius, or a setting of the defense."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from robench import catalog
from robench.canonical import builder_defaults
from robench.core import specs
from robench.core.errors import UsageError
from robench.records.record import Record
from robench.records.store import slug
from robench.reports import security_curve as over_radius
from robench.reports.plots.curves import Curve, Point, draw
from robench.threats.threat import COUNTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A setting is drawn from this many values on.
_LEAST = 2
# One record of least distances answers for every radius up to its own: so many steps are drawn.
_BETWEEN = 8


def security(records: Sequence[Record]) -> "dict[str, Figure]":
    """Robust accuracy over the radius, from 0 (clean), a picture an attack.

    A curve a defense with two radii or more, or with one record of least distances.

    Certificates count at every radius that holds them, so no curve rises.
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
    """Where a curve has points: clean, at each record's radius, and between where one record answers for all."""
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
        for base, setting, value in _settings(job.defense.name):
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


def _settings(defense: str) -> Iterator[tuple[str, str, float]]:
    """Each numeric setting of a defense: its name without the setting, the setting, the value.

    What the name does not say is taken from the card and its builder, so that "de3-digits" stands among
    "de3-digits(sigma=140)".
    """
    try:
        first, *rest = specs.split(defense, "+")
        spec = specs.parse(first)
        card = catalog.cards().get(spec.name)
        built = card.spec if card else specs.Spec(spec.name)
        said = {**builder_defaults(built.name), **built.arguments, **spec.arguments}
    except UsageError:
        return
    for name, value in said.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            others = {key: each for key, each in spec.arguments.items() if key != name}
            yield "+".join([str(specs.Spec(spec.name, others)), *rest]), name, float(value)


def _free(taken: "dict[str, Figure]", name: str) -> str:
    """The name as a file's; with a number where other images made the same one."""
    stem, count = slug(name), 1
    while (f"{stem}-{count}" if count > 1 else stem) in taken:
        count += 1
    return f"{stem}-{count}" if count > 1 else stem

"""A sweep as table and picture; see robench.evaluation.sweep."""

from pathlib import Path

from robench.engine.tolerances import beyond_chance
from robench.evaluation.sweep import ATTACK, Sweep
from robench.records.record import Record
from robench.reports.plots.curves import Curve, Point, draw
from robench.reports.plots.style import save
from robench.reports.table import Grid
from robench.statistics.accuracy import interval, percent


def grid(sweep: Sweep, found: list[tuple[float, Record]]) -> Grid:
    """The sweep's table, with a note for each attacker knowledge whose curve has not converged."""
    rows = [
        (
            f"{value:g}",
            record.job.knowledge,
            f"{percent(record.clean_accuracy)} {interval(record.clean_accuracy)}",
            f"{percent(record.robust_accuracy)} {interval(record.robust_accuracy)}",
            "!" if record.health else "",
        )
        for value, record in found
    ]
    job = found[0][1].job
    columns = (sweep.name, "knowledge", "clean %", "robust %", "warnings")
    warnings = {f"! {warning.code}: {warning.text}": None for _, record in found for warning in record.health}
    return Grid(
        title=f"{job.defense.name.partition('(')[0]} · {job.protocol} · {job.threat}",
        columns=columns,
        groups=(tuple(rows),),
        names=frozenset(("knowledge",)),
        numbers=frozenset((sweep.name, "clean %", "robust %")),
        notes=(*unconverged(sweep, found), *warnings),
    )


def unconverged(sweep: Sweep, found: list[tuple[float, Record]]) -> list[str]:
    """One line per attacker knowledge for which the last value of an attack's setting still lowers accuracy."""
    if not sweep.of_attack:
        return []
    lines = []
    for level in dict.fromkeys(record.job.knowledge for _, record in found):
        points = [(value, record) for value, record in found if record.job.knowledge == level]
        (before, first), (last, second) = points[-2:]
        lost = first.robust_accuracy.correct - second.robust_accuracy.correct
        if beyond_chance(lost, second.job.n):
            lines.append(
                f"! not-converged: {level}: from {sweep.name} {before:g} to {last:g} robust accuracy still falls "
                f"by {100 * lost / second.job.n:.2f} points: go further"
            )
    return lines


def picture(sweep: Sweep, found: list[tuple[float, Record]], path: Path) -> Path:
    """Write the curves as PNG: clean accuracy once, robust accuracy for each level of knowledge."""
    levels = list(dict.fromkeys(record.job.knowledge for _, record in found))
    points = {
        level: [(v, record) for v, record in found if record.job.knowledge == level] for level in levels
    }
    curves = [Curve("clean", [Point.of(v, record.clean_accuracy) for v, record in points[levels[0]]])]
    for level in levels:
        curves.append(Curve(f"robust, {level}", [Point.of(v, r.robust_accuracy) for v, r in points[level]]))
    job = found[0][1].job
    title = f"{job.defense.name.partition('(')[0]} under {job.suite.name.partition('(')[0]}, {job.threat}"
    return save(draw(curves, sweep.name.removeprefix(ATTACK), title), path)

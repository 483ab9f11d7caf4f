"""A sweep as a table and a plot; see robench.evaluation.sweep."""

from pathlib import Path

from robench.engine.tolerances import beyond_chance
from robench.evaluation.sweep import ATTACK, Sweep
from robench.records.record import Record
from robench.reports.formatting import figure
from robench.reports.notes import warning_notes
from robench.reports.plots.curves import by_level, draw
from robench.reports.plots.style import save
from robench.reports.table import Grid


def grid(sweep: Sweep, runs: list[tuple[float, Record]]) -> Grid:
    """The sweep's table, with a note for each attacker knowledge whose curve has not converged."""
    rows = [
        (
            f"{value:g}",
            record.job.knowledge,
            figure(record.clean_accuracy),
            figure(record.robust_accuracy),
            "!" if record.health else "",
        )
        for value, record in runs
    ]
    job = runs[0][1].job
    columns = (sweep.name, "knowledge", "clean %", "robust %", "warnings")
    warnings = warning_notes(
        (record.job.knowledge, f"{sweep.name} {value:g}", record.health) for value, record in runs
    )
    return Grid(
        title=f"{job.defense.name.partition('(')[0]} · {job.protocol} · {job.threat}",
        columns=columns,
        groups=(tuple(rows),),
        names=frozenset(("knowledge",)),
        numbers=frozenset((sweep.name, "clean %", "robust %")),
        notes=(*unconverged(sweep, runs), *warnings),
    )


def unconverged(sweep: Sweep, runs: list[tuple[float, Record]]) -> list[str]:
    """One line per attacker knowledge for which the last value of the attack's setting still lowers accuracy."""
    if not sweep.of_attack:
        return []
    lines = []
    for level in dict.fromkeys(record.job.knowledge for _, record in runs):
        points = [(value, record) for value, record in runs if record.job.knowledge == level]
        (before, first), (last, second) = points[-2:]
        newly_fooled = first.robust_accuracy.correct - second.robust_accuracy.correct
        if beyond_chance(newly_fooled, second.job.n):
            lines.append(
                f"! not-converged: {level}: robust accuracy still falls from {sweep.name} {before:g} to {last:g}, "
                f"by {100 * newly_fooled / second.job.n:.2f} percentage points: use larger values"
            )
    return lines


def picture(sweep: Sweep, runs: list[tuple[float, Record]], path: Path) -> Path:
    """Write the curves as a PNG: clean accuracy, and robust accuracy for each attacker knowledge."""
    levels: dict[str, dict[float, Record]] = {}
    for value, record in runs:
        levels.setdefault(record.job.knowledge, {})[value] = record
    job = runs[0][1].job
    title = f"{job.defense.name.partition('(')[0]} under {job.suite.name.partition('(')[0]}, {job.threat}"
    return save(draw(by_level(levels), sweep.name.removeprefix(ATTACK), title), path)

"""The table of unforeseen attacks: robust accuracy of each defense, and the mean, from records alone."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from robench import catalog
from robench.canonical import suite_name
from robench.catalog import Rung, Suite
from robench.core.errors import UsageError
from robench.core.grouping import grouped
from robench.records.record import Record
from robench.records.samples import held
from robench.reports.cells import lowest, on_images, on_protocol, ordinary_protocols, run_command
from robench.reports.formatting import EMPTY, cell, robust_cell
from robench.reports.notes import warning_notes
from robench.reports.table import Grid
from robench.statistics.accuracy import Accuracy, bootstrap
from robench.threats.threat import Threat


@dataclass(frozen=True)
class Column:
    """One defense on one set of images.

    Attributes:
        name: heading of the column.
        records: the records by index of the rung in the ladder.
        threats: the threat of each rung.
    """

    name: str
    records: dict[int, Record]
    threats: tuple[str, ...]

    @property
    def first(self) -> Record:
        return next(iter(self.records.values()))

    def robust(self) -> np.ndarray | None:
        """Which images survive each attack, bool (attacks, n); None if a record or its samples are missing."""
        rows = [held(record) for record in self.records.values()]
        if len(rows) < len(self.threats) or any(row is None for row in rows):
            return None
        return np.stack([row for row in rows if row is not None])


def unforeseen(records: Sequence[Record], ladder: str | Suite = "unforeseen") -> list[Grid]:
    """One table per set of images, with defenses in columns, and attacks, their mean (mUA) and their union in rows.

    The interval of the mean is a bootstrap over the images, which are common to all attacks.

    Args:
        ladder: the suite whose rungs are the rows. Each rung has its own threat.

    Raises:
        UsageError: when the ladder does not exist.
    """
    suite = ladder if isinstance(ladder, Suite) else catalog.suites().get(ladder)
    if suite is None or not any(rung.threats for rung in suite.rungs):
        known = ", ".join(name for name, s in catalog.suites().items() if any(r.threats for r in s.rungs))
        raise UsageError(f'no ladder of threats "{ladder}": expected one of {known}')
    images = grouped(records, lambda r: (*astuple(r.job.dataset), r.job.n))
    grids = []
    for (dataset, split, _, n), image_records in sorted(images.items()):
        columns = _columns(image_records, suite)
        if columns:
            grids.append(_grid(f"{dataset} {split}, n = {n:,}", suite, columns))
    return grids


def _columns(records: list[Record], suite: Suite) -> list[Column]:
    """The defenses with at least two records of the ladder, since a single one may be from another run."""
    sides = sorted({int(side) for rung in suite.rungs for side in rung.threats})
    by_side = [tuple(str(rung.threat(side, _ANY)) for rung in suite.rungs) for side in sides]
    # Records have no image size, but their radii reveal it.
    threats = max(by_side, key=lambda texts: sum(r.job.threat in texts for r in records))
    subjects = grouped(records, lambda r: (r.job.defense.name, r.job.defense.checkpoint_sha256, r.job.seed))
    columns = []
    for (name, checkpoint, seed), members in sorted(subjects.items()):
        pairs = ((i, _filling(members, rung, threats[i])) for i, rung in enumerate(suite.rungs))
        by_rung = {i: record for i, record in pairs if record is not None}
        if len(by_rung) > 1:
            heading = name + (f" (seed {seed})" if seed else "")
            ambiguous = sum(other[0] == name and other[2] == seed for other in subjects) > 1
            columns.append(Column(f"{heading} {checkpoint[:8]}" if ambiguous else heading, by_rung, threats))
    return columns


# Placeholder for rungs with the protocol's threat, which are not rows here.
_ANY = Threat.parse("Linf:1")


def _filling(records: list[Record], rung: Rung, threat: str) -> Record | None:
    expected = (threat, suite_name(rung.attack), rung.knowledge)
    fitting = [r for r in records if (r.job.threat, r.job.suite.name, r.job.knowledge) == expected]
    return lowest(fitting)


def _grid(title: str, suite: Suite, columns: list[Column]) -> Grid:
    notes = []
    lines = [
        (rung.name, columns[0].threats[i], *(robust_cell(column.records.get(i)) for column in columns))
        for i, rung in enumerate(suite.rungs)
    ]
    clean = ("clean", EMPTY, *(cell(column.first.clean_accuracy) for column in columns))
    means, worst_cases = zip(
        ("mean (mUA)", "all at once"), (EMPTY, EMPTY), *map(_together, columns), strict=True
    )
    for column in columns:
        missing = [rung.name for i, rung in enumerate(suite.rungs) if i not in column.records]
        if missing:
            notes.append(f"{', '.join(missing)} of {column.name}: {_command(column.first, suite)}")
    notes += warning_notes(
        (column.name, rung.name, column.records[i].health)
        for i, rung in enumerate(suite.rungs)
        for column in columns
        if i in column.records
    )
    names = tuple(column.name for column in columns)
    return Grid(
        title=f"{suite.name} · {title} · robust accuracy in %, 95 % intervals",
        columns=("attack", "threat", *names),
        groups=((clean,), tuple(lines), (means, worst_cases)),
        names=frozenset(("attack", "threat")),
        numbers=frozenset(names),
        notes=tuple(notes),
    )


def _together(column: Column) -> tuple[str, str]:
    """The mean over the attacks, and robust accuracy under all of them."""
    robust = column.robust()
    if robust is None:
        return EMPTY, EMPTY
    shares = robust.mean(0)
    [(low, high)] = bootstrap([shares])
    mean = f"{100 * shares.mean():.2f}\n{100 * low:.1f}–{100 * high:.1f}"
    return mean, cell(Accuracy.of(int(robust.all(0).sum()), robust.shape[1]))


def _command(record: Record, suite: Suite) -> str:
    """The command that creates the missing records."""
    job = record.job
    place = (job.dataset.name, job.dataset.split)
    fitting = [p.name for p in ordinary_protocols() if (str(p.dataset), p.split) == place]
    images = [*on_protocol(fitting[0]), "--samples", str(job.n)] if fitting else on_images(job)
    seed = ["--seed", str(job.seed)] if job.seed else []
    return run_command(job.defense.name, suite.name, images, more=seed)

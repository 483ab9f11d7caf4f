"""The table of purifiers: robust accuracy under increasing attacker knowledge, from records alone."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from robench import catalog
from robench.canonical import suite_name
from robench.catalog import Rung, Suite
from robench.core import specs
from robench.core.errors import UsageError
from robench.core.formatting import count
from robench.core.grouping import grouped
from robench.records.randomized import FIELD, unattacked
from robench.records.record import Record
from robench.reports.cells import lowest, on_images, on_protocol, run_command, with_files
from robench.reports.formatting import EMPTY, cell, robust_cell
from robench.reports.notes import warning_notes
from robench.reports.table import Grid
from robench.threats.knowledge import Knowledge
from robench.threats.threat import Threat


@dataclass(frozen=True)
class Row:
    """One purifier with one classifier.

    Attributes:
        purified: a record of the purifier.
        records: the records of each column, by the name of its rungs.
        missing: the columns without a record.
    """

    purified: Record
    records: dict[str, list[Record]]
    missing: tuple[str, ...]

    def only(self, columns: Sequence[str]) -> "Row":
        """The row with these columns alone."""
        records = {name: self.records[name] for name in columns if name in self.records}
        return Row(self.purified, records, tuple(name for name in self.missing if name in columns))

    def shown(self) -> Iterator[tuple[str, Record]]:
        """The columns with a record, and the record of each that is shown."""
        for name, records in self.records.items():
            if record := lowest(records):
                yield name, record


def purifiers(records: Sequence[Record], ladder: str = "purifier") -> list[Grid]:
    """One table per protocol: undefended, oblivious, BPDA and exact gradients, with and without EOT.

    A cell has the lowest accuracy of its rungs. For a randomised purifier this is the accuracy in the worst draw, with
    the average below.

    Args:
        ladder: the suite whose rungs are the columns.

    Raises:
        UsageError: when the ladder does not exist.
    """
    suite = find_ladder(ladder)
    places = rows_by_protocol(records, suite)
    return [_grid(protocol, threat, rows, suite) for protocol, threat, rows in places]


def find_ladder(name: str) -> Suite:
    """The suite with rungs that has this name.

    Raises:
        UsageError: when no suite has this name, or it has no rungs.
    """
    suite = catalog.suites().get(name)
    if suite is None or not suite.rungs:
        known = ", ".join(name for name, suite in catalog.suites().items() if suite.rungs)
        raise UsageError(f'no ladder "{name}": expected one of {known}')
    return suite


def rows_by_protocol(records: Sequence[Record], suite: Suite) -> Iterator[tuple[str, str, list[Row]]]:
    """The rows of each protocol and threat that has any."""
    for (protocol, threat), group in _groups(records).items():
        if rows := list(_rows(group, suite)):
            yield protocol, threat, rows


def rows_of(records: Sequence[Record], suite: Suite) -> Iterator[Row]:
    """Every purifier with a classifier, and the records of the rungs of `suite`."""
    for _, _, rows in rows_by_protocol(records, suite):
        yield from rows


def _groups(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """The records by protocol and threat, where at least one is of a purifier."""
    groups = grouped((r for r in records if not r.corrupted), lambda r: (r.job.protocol, r.job.threat))
    purified = (key for key, group in groups.items() if any(r.job.defense.classifier for r in group))
    return {key: groups[key] for key in sorted(purified)}


def _rows(records: list[Record], suite: Suite) -> Iterator[Row]:
    subjects: dict[tuple[str, str, int], Record] = {}
    for record in records:
        job = record.job
        if job.defense.classifier:
            subjects.setdefault((job.defense.name, job.defense.checkpoint_sha256, job.seed), record)
    for _, purified in sorted(subjects.items()):
        randomised = any(FIELD in record.extra for record in records if _of_one(record, purified))
        by_rung: dict[str, list[Record]] = {}
        for rung in suite.rungs:
            if rung.suits(randomised):
                matching = [record for record in records if _fills(record, rung, purified)]
                by_rung.setdefault(rung.name, []).extend(matching)
        # Runs outside the ladder, such as those of a sweep, do not add a row.
        if any(_of_one(record, purified) for matching in by_rung.values() for record in matching):
            yield Row(purified, by_rung, tuple(name for name, matching in by_rung.items() if not matching))


def _of_one(record: Record, purified: Record) -> bool:
    """Whether two records have the same defense name and checkpoint."""
    one, other = record.job.defense, purified.job.defense
    return (one.name, one.checkpoint_sha256) == (other.name, other.checkpoint_sha256)


def _fills(record: Record, rung: Rung, purified: Record) -> bool:
    """Whether a record is the run of `rung` on the defense of `purified`, on the same images."""
    job, other = record.job, purified.job
    name = other.defense.classifier if rung.subject == "classifier" else other.defense.name
    expected = (name, rung.knowledge, other.seed, other.dataset.digest, other.n)
    if (job.defense.name, job.knowledge, job.seed, job.dataset.digest, job.n) != expected:
        return False
    if rung.subject != "classifier" and not _of_one(record, purified):
        return False
    return job.suite.name == suite_name(rung.attack)


def _grid(protocol: str, threat: str, rows: list[Row], suite: Suite) -> Grid:
    names = tuple(dict.fromkeys(rung.name for rung in suite.rungs))
    columns = ("purifier", "clean", *names, "passes", "images/s")
    notes = ["passes (per image) and images/s: for the strongest attack with exact gradients"]
    notes += commands(protocol, rows, suite)
    notes += warnings_of(rows)
    shown = (record for row in rows for records in row.records.values() for record in records)
    if any(FIELD in record.extra for record in shown):
        notes.append(
            "randomized purifiers: accuracy in the worst draw, also for clean images, with the average below"
        )
    return Grid(
        title=f"{protocol} · {Threat.parse(threat)} · robust accuracy in %, 95 % intervals",
        columns=columns,
        groups=(tuple(_cells(row, suite) for row in rows),),
        names=frozenset(("purifier",)),
        numbers=frozenset(columns[1:]),
        notes=tuple(notes),
    )


def warnings_of(rows: Sequence[Row]) -> list[str]:
    """The warnings of the records that are shown."""
    return warning_notes(
        (row.purified.job.defense.name, name, record.health) for row in rows for name, record in row.shown()
    )


def commands(protocol: str, rows: Sequence[Row], suite: Suite) -> Iterator[str]:
    """The commands that fill empty cells. One command, with NAME, stands for all purifiers that need it."""
    by_images: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for row in rows:
        missing = [name for name in row.missing if _playable(name, row.purified, suite)]
        if missing:
            job = row.purified.job
            images = on_protocol(protocol) if protocol in catalog.protocols() else on_images(job)
            arguments = (*images, *with_files(job.dataset.name))
            by_images.setdefault(arguments, []).append((", ".join(missing), job.defense.name))
    for arguments, cells in by_images.items():
        name = cells[0][1] if len(cells) == 1 else "NAME"
        command = run_command(name, suite.name, arguments)
        if len(cells) == 1:
            yield f"{cells[0][0]} of {name}: {command}"
            continue
        defenses: dict[str, list[str]] = {}
        for columns, defense in cells:
            defenses.setdefault(columns, []).append(shlex.quote(defense))
        yield "\n".join(
            [
                f"not yet run (replace NAME): {command}",
                *(f"{columns} of {'; '.join(d)}" for columns, d in defenses.items()),
            ]
        )


def _playable(name: str, purified: Record, suite: Suite) -> bool:
    """Whether a rung can run. The family of its surrogate may have no card for the dataset."""
    dataset = specs.parse(purified.job.dataset.name).name
    known = {(name, card.dataset) for card in catalog.cards().values() for name in (card.family, card.name)}
    sources = [Knowledge.of(rung.knowledge).defense for rung in suite.rungs if rung.name == name]
    return any(not source or (source, dataset) in known for source in sources)


def _cells(row: Row, suite: Suite) -> tuple[str, ...]:
    names = dict.fromkeys(rung.name for rung in suite.rungs)
    # Rungs whose attacker has the exact gradients of the defense.
    exact = dict.fromkeys(
        rung.name for rung in suite.rungs if rung.subject == "defense" and rung.knowledge == "full"
    )
    records = [record for name in exact for record in row.records.get(name, ())]
    strongest = lowest(records)
    cost, speed = EMPTY, EMPTY
    if strongest is not None:
        cost = count(sum(strongest.passes.values()) / strongest.job.n)
        speed = count(strongest.job.n / strongest.seconds) if strongest.seconds else EMPTY
    clean, figures = unattacked(row.purified), row.purified.extra.get(FIELD)
    return (
        row.purified.job.defense.name,
        cell(clean) + _average(figures, "clean"),
        *(_cell(row.records.get(name)) for name in names),
        cost,
        speed,
    )


def _cell(records: list[Record] | None) -> str:
    record = lowest(records or ())
    return robust_cell(record) + (_average(record.extra.get(FIELD), "robust") if record else "")


def _average(figures: dict[str, Any] | None, which: str) -> str:
    return f"\navg {100 * figures[which]['average']['value']:.2f}" if figures else ""

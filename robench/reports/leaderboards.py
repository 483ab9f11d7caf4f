"""Leaderboards: one for each dataset and threat, followed by its other tables.

The leaderboard is the table of the protocol's suite under full knowledge, on the most images. Other suites, weaker
attackers and smaller protocols are in `more`. Runs that differ in a single number are one row of `series`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from robench import catalog
from robench.canonical import suite_name
from robench.core import specs
from robench.core.errors import UsageError, unknown_name
from robench.records.record import Record
from robench.reports.ranking import Group, Row, Section, sections, sort_rows
from robench.reports.series import RADIUS, Series, folded, series

# By the names of `robench.reports.table.FIELDS`.
_FIELDS: dict[str, Callable[[Record], str]] = {
    "defense": lambda record: record.job.defense.name,
    "dataset": lambda record: _dataset(record),
    "threat": lambda record: record.job.threat,
    "protocol": lambda record: record.job.protocol,
    "suite": lambda record: record.job.suite.name,
    "knowledge": lambda record: record.job.knowledge,
}


@dataclass(frozen=True)
class Table:
    """Rows that are ranked together: one protocol, suite and attacker knowledge.

    Attributes:
        remarks: the mean over several seeds.
        missing: the commands that complete the table.
    """

    rows: Group
    remarks: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def job(self):
        return self.rows[0].record.job

    @property
    def suite(self) -> str:
        """The suite, with the attacker knowledge if it is not full: "pgd@bpda"."""
        job = self.job
        return job.suite.name if job.knowledge == "full" else f"{job.suite.name}@{job.knowledge}"

    @property
    def title(self) -> str:
        job = self.job
        return f"{_dataset(self.rows[0].record)} · {job.threat} · {self.suite} · {job.n:,} images"


@dataclass(frozen=True)
class Leaderboard:
    """All tables of one dataset and threat.

    Attributes:
        main: the leaderboard itself; None if there are only series.
        folded: the rows that series replace.
    """

    dataset: str
    threat: str
    main: Table | None
    more: tuple[Table, ...] = ()
    series: tuple[Series, ...] = ()
    folded: Group = ()

    @property
    def tables(self) -> tuple[Table, ...]:
        return (*([self.main] if self.main else []), *self.more)


def leaderboards(
    records: Sequence[Record], sort: str = "robust", only: Sequence[str] = ()
) -> list[Leaderboard]:
    """The leaderboards, sorted by number of images, the largest first.

    Args:
        sort: the column to sort by, best first; one of `robench.reports.table.SORTS`.
        only: which rows to keep: patterns of defenses ("mimir-*"), or "field=pattern" with one of
            `robench.reports.table.FIELDS`. Ranks are among all rows.

    Raises:
        UsageError: when there are records, but no row matches.
    """
    keep = _keeping(only)
    runs = series(records)
    hidden = folded(runs)
    places: dict[tuple[str, str], list[Table]] = {}
    for section in sections(records):
        for table in _tables(section):
            places.setdefault((_dataset(table.rows[0].record), section.threat), []).append(table)
    boards = [_leaderboard(*place, tables, hidden) for place, tables in places.items()]
    boards = _with_series(boards, runs)
    kept = [_filtered(board, sort, keep) for board in sorted(boards, key=_order)]
    kept = [board for board in kept if board.tables or board.series or board.folded]
    if only and records and not kept:
        if len(only) == 1 and "=" not in only[0]:
            raise unknown_name("defense of these records", only[0], {r.job.defense.name for r in records})
        raise UsageError(f"no row matches --only {','.join(only)}: robench board --format csv lists all rows")
    return kept


def _dataset(record: Record) -> str:
    """The name of a dataset without arguments."""
    return specs.parse(record.job.dataset.name).name


def _tables(section: Section) -> Iterable[Table]:
    suites = _own_suites(section.protocol)
    for rows, remarks in zip(section.groups, section.remarks, strict=True):
        table = Table(rows, remarks)
        yield replace(table, missing=section.missing) if table.suite == suites[0] else table


def _own_suites(protocol: str) -> list[str]:
    """The suites of a protocol, with the rungs of ladders as suites; AutoAttack for an unknown protocol."""
    known = catalog.protocols().get(protocol)
    shipped = catalog.suites()
    names = []
    for name in known.suites if known else ["autoattack"]:
        rungs = shipped[name].rungs if name in shipped else []
        names += [suite_name(rung.attack) for rung in rungs if rung.knowledge == "full"] or [name]
    return names


def _leaderboard(dataset: str, threat: str, tables: list[Table], hidden: set[int]) -> Leaderboard:
    def priority(table: Table) -> tuple:
        job, suites = table.job, _own_suites(table.job.protocol)
        return (
            job.knowledge != "full",
            job.suite.name not in suites,
            -job.n,
            suites.index(job.suite.name) if job.suite.name in suites else 0,
            -len(table.rows),
        )

    shown = [replace(t, rows=tuple(row for row in t.rows if id(row.record) not in hidden)) for t in tables]
    ranked = sorted((table for table in shown if table.rows), key=priority)
    hidden_rows = tuple(row for table in tables for row in table.rows if id(row.record) in hidden)
    return Leaderboard(dataset, threat, ranked[0] if ranked else None, tuple(ranked[1:]), folded=hidden_rows)


def _with_series(boards: list[Leaderboard], runs: list[Series]) -> list[Leaderboard]:
    """Add each series to the leaderboard of its dataset and threat; for one over radii, the first with its norm."""
    ranked = sorted((board for board in boards if board.tables), key=_order)
    by_place: dict[tuple[str, str], list[Series]] = {}
    for run in runs:
        record = run.points[0][1]
        place = _dataset(record), record.job.threat
        if run.kind == RADIUS:
            kind = record.job.threat_model.kind
            threats = [board.threat for board in ranked if board.dataset == place[0]]
            same_norm = [threat for threat in threats if threat.rpartition(":")[0] == kind]
            place = (place[0], same_norm[0] if same_norm else kind)
        by_place.setdefault(place, []).append(run)
    boards = [
        replace(board, series=tuple(by_place.pop((board.dataset, board.threat), ()))) for board in boards
    ]
    return boards + [Leaderboard(*place, None, series=tuple(rest)) for place, rest in by_place.items()]


def _order(board: Leaderboard) -> tuple:
    if board.main is None:
        return (0, True, 0, board.dataset, board.threat)
    job = board.main.job
    official = job.protocol in catalog.protocols() and job.suite.name in catalog.suites()
    return (-job.n, not official, -len(board.main.rows), board.dataset, board.threat)


def _filtered(board: Leaderboard, sort: str, keep: Callable[[Record], bool]) -> Leaderboard:
    def filtered(table: Table) -> Table:
        rows = tuple(row for row in table.rows if keep(row.record))
        complete = len(rows) == len(table.rows)
        names = {f"{row.record.job.defense.name}, " for row in rows}
        remarks = tuple(text for text in table.remarks if complete or text.startswith(tuple(names)))
        return Table(sort_rows(rows, sort), remarks, table.missing if complete else ())

    main = filtered(board.main) if board.main else None
    more = tuple(table for table in map(filtered, board.more) if table.rows)
    runs = tuple(run for run in board.series if all(keep(record) for _, record in run.points))
    hidden = tuple(row for row in board.folded if keep(row.record))
    main = main if main and main.rows else None
    return replace(board, main=main, more=more, series=runs, folded=hidden)


def _keeping(only: Sequence[str]) -> Callable[[Record], bool]:
    """A function that checks whether a record matches one pattern for each given field."""
    patterns: dict[str, list[str]] = {}
    for word in only:
        field, equals, pattern = word.partition("=")
        field, pattern = (field, pattern) if equals and field in _FIELDS else ("defense", word)
        if equals and field == "defense" and "(" not in word and not word.startswith("defense="):
            raise unknown_name("field", word.partition("=")[0], _FIELDS)
        patterns.setdefault(field, []).append(pattern)
    # An exact name always matches, even with brackets.
    return lambda record: all(
        any(_FIELDS[field](record) == p or fnmatchcase(_FIELDS[field](record), p) for p in listed)
        for field, listed in patterns.items()
    )


def every_row(boards: Sequence[Leaderboard]) -> Iterable[tuple[str, Leaderboard, Row]]:
    """All rows with the table that they are in: "leaderboard", "more" or "series"."""
    for board in boards:
        for table in board.tables:
            for row in table.rows:
                yield "leaderboard" if table is board.main else "more", board, row
        for row in board.folded:
            yield "series", board, row

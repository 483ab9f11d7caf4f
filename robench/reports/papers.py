"""Tables in the layout of papers, from `papers/*.toml`, with published figures and ours from records.

Figures that a card claims are read from the card. An unknown figure reads "not found".
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from robench import catalog
from robench.core import specs
from robench.core.errors import UsageError
from robench.core.formatting import markdown
from robench.core.sanitize import plain
from robench.records.collection import Collection
from robench.records.record import Record
from robench.reports import certification
from robench.reports.cells import has_other_weights, on_protocol, ordinary_protocols, run_command, with_files
from robench.reports.differences import differences
from robench.reports.formatting import EMPTY
from robench.reports.notes import warning_notes
from robench.reports.paper_files import SHAPES, Column, Paper, Row, Table, attack_specs
from robench.reports.table import WIDTH, Grid, render
from robench.statistics.accuracy import interval, percent
from robench.threats.threat import Threat, same_threat

UNKNOWN = "not found"

# A row and our record of each of its columns.
_Line = tuple[Row, list[tuple[Column, Record | None]]]


def grids(paper: Paper, records: Sequence[Record], ladder: str | None = None) -> list[Grid]:
    """The paper's tables; for a ladder, one per protocol.

    Args:
        ladder: replaces the ladder of the paper.

    Raises:
        UsageError: when there is no such ladder, or the paper has none.
    """
    if ladder and not paper.ladder:
        raise UsageError(f"{paper.name} has fixed tables: omit --suite")
    if paper.ladder:
        tables, notes = SHAPES[paper.shape](records, ladder or paper.ladder), paper.notes
    else:
        tables = [grid for table in paper.tables for grid in _grids(table, records)]
        notes = paper.notes
    return [*tables[:-1], *(replace(table, notes=(*table.notes, *notes)) for table in tables[-1:])]


def text(
    paper: Paper,
    records: Sequence[Record],
    format: str = "text",
    ladder: str | None = None,
    width: int = WIDTH,
) -> str:
    """The tables in a format of `robench.reports.table`. For a paper with fixed tables, CSV has one line per cell."""
    tables = grids(paper, records, ladder)
    if not tables:
        command = f"robench run --defense {paper.example} --attack {ladder or paper.ladder}"
        related = [
            name
            for name, suite in catalog.suites().items()
            if suite.rungs and name != ladder and name.startswith(paper.ladder)
        ]
        others = [f"--suite {name}" for name in related if grids(paper, records, name)]
        known = f" There are records for {', '.join(others)}." if others else ""
        return f"No records for this table: {command} creates them.{known}\n"
    if format == "csv" and paper.tables:
        cells = tuple(
            (grid.title, row[0], column, cell)
            for grid in tables
            for row in grid.rows
            for column, cell in zip(grid.columns[1:], row[1:], strict=True)
        )
        tables = [Grid(paper.title, ("table", "row", "column", "value"), (cells,))]
    # What is certified of the paper's own defenses.
    certifications = records.certifications if isinstance(records, Collection) else ()
    tables += certification.grids([bound for bound in certifications if bound.defense.family == paper.name])
    heading = (
        {"text": "{}\n\n", "md": "## {}\n\n", "latex": "% {}\n\n"}.get(format, "") if paper.tables else ""
    )
    title = markdown(paper.title) if format == "md" else plain(paper.title)
    return heading.format(title) + "\n".join(render(grid, format, width) for grid in tables)


def _grids(table: Table, records: Sequence[Record]) -> Iterator[Grid]:
    lines = [
        (row, [(column, _measured(table, row, column, records)) for column in table.columns])
        for row in table.rows
    ]
    yield _grid(table, lines)
    columns = {column.name: bool(column.attack) for column in table.columns}
    cells = {(row.name, column.name): record for row, line in lines for column, record in line}
    yield from differences(table.title, table.differences, columns, cells)


def _grid(table: Table, lines: Sequence[_Line]) -> Grid:
    facts = list(dict.fromkeys(name for row in table.rows for name in row.facts))
    published = any(not row.ours for row in table.rows)
    columns = [
        name
        for column in table.columns
        for name in ([column.name, f"{column.name}, ours"] if published else [column.name])
    ]
    shown: list[tuple[str, ...]] = []
    empty: list[tuple[Row, list[Column]]] = []
    for row, line in lines:
        texts, missing = [row.name, *(row.facts.get(name, EMPTY) for name in facts)], []
        for column, record in line:
            if record is None and row.defense:
                missing.append(column)
            texts += [_published(table, row, column)] if published else []
            texts.append(_figure(record, column))
        shown.append(tuple(texts))
        empty.append((row, missing))
    return Grid(
        title=table.title,
        columns=("", *facts, *columns),
        groups=(tuple(shown),),
        names=frozenset(("", *facts)),
        numbers=frozenset(columns),
        notes=(*table.notes, *_sources(table), *_images(lines), *_commands(table, empty)),
    )


def _claims(table: Table, row: Row) -> Iterator[dict[str, Any]]:
    """The claims of a row's card for the table's threat."""
    card = catalog.cards().get(row.defense)
    if card and not row.ours and card.dataset == table.dataset:
        yield from (c for c in card.claims if same_threat(c["threat"], table.threat))


def _published(table: Table, row: Row, column: Column) -> str:
    if row.ours:
        return EMPTY
    values = [row.published[column.name]] if column.name in row.published else []
    for claim in _claims(table, row):
        if not column.attack:
            values.append(claim["clean"])
        elif claim["attack"] == column.name:
            values.append(claim["robust"])
    value = values[0] if values else UNKNOWN
    return value if isinstance(value, str) else f"{value:.2f}"


def _measured(table: Table, row: Row, column: Column, records: Sequence[Record]) -> Record | None:
    """Our record for a cell: the one with the most images, then with the lowest robust accuracy."""
    threat = Threat.parse(table.threat)
    wanted = attack_specs(column, threat) if column.attack else None
    level = _level(row, column)
    fitting = [
        record
        for record in records
        if row.defense
        and not record.is_estimate
        and record.job.defense.name == row.defense
        and same_threat(record.job.threat, table.threat)
        and specs.parse(record.job.dataset.name).name == table.dataset
        and not has_other_weights(record)
        and (wanted is None or (record.job.suite.attacks, record.job.knowledge) == (wanted, level))
    ]
    return min(fitting, key=lambda r: (-r.job.n, r.robust_accuracy.value), default=None)


def _level(row: Row, column: Column) -> str:
    """The attacker knowledge of a cell: always full for a defense without a purifier."""
    card = catalog.cards().get(row.defense)
    return "full" if card and not card.classifier else column.knowledge


def _figure(record: Record | None, column: Column) -> str:
    if record is None:
        return EMPTY
    accuracy = record.robust_accuracy if column.attack else record.clean_accuracy
    mark = " !" if column.attack and record.health else ""
    return f"{percent(accuracy)}{mark}\n{interval(accuracy)}"


def _sources(table: Table) -> Iterator[str]:
    names_by_source: dict[str, list[str]] = {}
    for row in table.rows:
        if row.published:
            names_by_source.setdefault(row.source, []).append(row.name)
        for claim in _claims(table, row):
            note = f" ({claim['note']})" if claim.get("note") else ""
            names_by_source.setdefault(claim["source"] + note, []).append(row.name)
    for source, names in names_by_source.items():
        yield f"published, {'; '.join(dict.fromkeys(names))}: {source}"


def _images(lines: Sequence[_Line]) -> Iterator[str]:
    """The number of images of our figures, and their warnings."""
    measured = [(row, column, record) for row, line in lines for column, record in line if record is not None]
    counts = [(row.name, column.name, record.job.n) for row, column, record in measured]
    for n in sorted({n for *_, n in counts}):
        yield f"our results, n = {n:,}, 95 % intervals: {'; '.join(_places(counts, n))}"
    yield from warning_notes(
        (row.name, column.name, record.health) for row, column, record in measured if column.attack
    )


def _places(counts: Sequence[tuple[str, str, int]], n: int) -> list[str]:
    """The cells with `n` images among (row, column, number of images): columns where each column has one number, else
    rows, with their columns where a row has several."""
    ours = [(row, column) for row, column, count in counts if count == n]
    others = [(row, column) for row, column, count in counts if count != n]
    if others and not {column for _, column in ours} & {column for _, column in others}:
        return list(dict.fromkeys(column for _, column in ours))
    several = {row for row, _ in others}
    columns: dict[str, list[str]] = {}
    for row, column in ours:
        columns.setdefault(row, []).append(column)
    return [f"{row} ({', '.join(names)})" if row in several else row for row, names in columns.items()]


# Parts of a command: attacks, images, knowledge, and further arguments.
_Words = tuple[str, tuple[str, ...], str, tuple[str, ...]]


def _commands(table: Table, empty: list[tuple[Row, list[Column]]]) -> Iterator[str]:
    """The commands that fill empty cells. Rows that need the same command share a line."""
    by_command: dict[_Words, list[str]] = {}
    # Every attack's record has clean accuracy; of a table without attacks the cheapest attack fills the cells.
    has_attacks = any(column.attack for column in table.columns)
    cheapest = ["fgsm"] if not has_attacks and Threat.parse(table.threat).norm in ("Linf", "L2") else []
    for row, columns in empty:
        levels: dict[str, list[str]] = {}
        for column in columns:
            attacks = levels.setdefault(_level(row, column), [])
            attacks += [column.attack] if column.attack not in attacks else []
        for level, attacks in levels.items():
            named = [name for name in attacks if name] or cheapest
            if named:
                by_command.setdefault(_words(table, row, named, level), []).append(row.defense)
    for words, (first, *others) in by_command.items():
        attacks, images, level, more = words
        command = run_command(first, attacks, images, level, more)
        also = f", and the same for {', '.join(others)}" if others else ""
        yield f"{EMPTY}: {command}{also}"


def _words(table: Table, row: Row, attacks: list[str], level: str) -> _Words:
    threat = Threat.parse(table.threat)
    fitting = [
        protocol.name
        for protocol in ordinary_protocols()
        if protocol.dataset and (protocol.dataset.name, protocol.threat) == (table.dataset, threat)
    ]
    images = on_protocol(fitting[0]) if fitting else ["--dataset", table.dataset, "--threat", table.threat]
    card = catalog.cards().get(row.defense)
    more = ["--checkpoint", "FILE"] if card is not None and not card.checkpoint else []
    return ",".join(attacks), tuple(images), level, (*more, *with_files(table.dataset))

"""robench board: leaderboards as text, Markdown, LaTeX, CSV and JSON, from records alone."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from textwrap import fill
from typing import Any

from robench import catalog
from robench.core.errors import UsageError
from robench.core.formatting import markdown, one_of
from robench.core.sanitize import escaped, plain
from robench.engine.outcome import ResultWarning
from robench.records.collection import Collection
from robench.records.randomized import over_draws
from robench.records.record import Record
from robench.reports import certification, corruption
from robench.reports.draws import draws_grids
from robench.reports.formatting import EMPTY, figure, kinds
from robench.reports.leaderboards import Leaderboard, Table, every_row, leaderboards
from robench.reports.notes import warning_notes
from robench.reports.ranking import NO_RANK, Row, Section, sections, shown_name
from robench.reports.robustbench import Claim, claims_only, with_claims
from robench.reports.table import BOARD_FORMATS, COLUMNS, SORTS, WIDTH, Grid, render
from robench.statistics.accuracy import percent

__all__ = [
    "COLUMNS",
    "EMPTY",
    "FORMATS",
    "NO_RANK",
    "SORTS",
    "Row",
    "Section",
    "board",
    "sections",
    "shown_name",
]

FORMATS = BOARD_FORMATS
USUAL = ("rank", "defense", "clean", "robust", "claimed", "best-known", "warnings")
_WORDS = ("defense", "suite", "knowledge", "warnings", "paper", "architecture")
_NUMBERS = frozenset(
    COLUMNS[name] for name in ("rank", "clean", "robust", "claimed", "best-known", "n", "parameters")
)
_HIDDEN = "No leaderboard has a matching row, but {} rows of other attacks match: add --more.\n"
_NO_RECORDS = "No records: robench run --defense mimir --attack autoattack creates one.\n"
# Column names of older protocol files.
_OLD = {"marks": "warnings", **{heading: name for name, heading in COLUMNS.items()}}


@dataclass(frozen=True)
class Choice:
    """Which parts of a board to show.

    Attributes:
        only: the rows, as `leaderboards` takes them; all by default.
        columns: names of `COLUMNS`; by default the protocol's, or `USUAL`.
        more: whether other suites, attackers and smaller protocols follow each leaderboard. By default only in
            Markdown, where they are folded.
        header: False for rows alone, for use in another table.
        intervals: whether accuracies are shown with confidence intervals.
        claims: published claims, in separate groups below; CSV and JSON contain only records.

    Raises:
        UsageError: for an unknown column.
    """

    only: Sequence[str] = ()
    columns: Sequence[str] = ()
    more: bool | None = None
    header: bool = True
    intervals: bool = True
    claims: Sequence[Claim] = ()

    def __post_init__(self) -> None:
        columns = [one_of("column", _OLD.get(name, name), tuple(COLUMNS)) for name in self.columns]
        object.__setattr__(self, "columns", columns)


def board(
    records: Sequence[Record],
    format: str = "text",
    width: int = WIDTH,
    sort: str = "robust",
    choice: Choice | None = None,
) -> str:
    """A leaderboard for each dataset and threat, ending in a newline. CSV and JSON have one table of all rows.

    Records under corruptions follow in separate tables; CSV includes them only if there are no others. Those of
    certifications follow as well, except in CSV.

    Args:
        records: any records; for those from `collect`, the files that were left out are listed at the end.
        format: one of `FORMATS`.
        width: width of the text in characters.
        sort: the column to sort each table by, best first; one of `SORTS`.
        choice: what is shown.

    Raises:
        UsageError: for another format or column, or where no row matches.
    """
    one_of("format", format, FORMATS)
    one_of("column", sort, SORTS)
    choice = choice or Choice()
    more = format == "md" if choice.more is None else choice.more
    choice = replace(choice, more=more)
    if not choice.header and format == "json":
        raise UsageError("JSON has no header to leave out: choose csv, latex, md or text")
    boards = leaderboards(records, sort, choice.only)
    corruption_grids = [] if choice.only else list(corruption.grids(records))
    certifications = records.certifications if isinstance(records, Collection) and not choice.only else ()
    certified_grids = certification.grids(certifications)
    left_out = list(map(str, records.left_out)) if isinstance(records, Collection) else []
    if format == "json":
        content = {"rows": list(_flat(boards, choice)), "left_out": left_out}
        if certifications:
            content["certified"] = [certification.flat(result) for result in certifications]
        return escaped(json.dumps(content, indent=2, ensure_ascii=False)) + "\n"
    if format == "csv" and (boards or not corruption_grids):
        return all_rows(boards, choice)
    parts = [part for leaderboard in boards for part in _parts(leaderboard, format, width, choice)]
    shown_places = {(leaderboard.dataset, leaderboard.threat) for leaderboard in boards if leaderboard.main}
    other_claims = [c for c in choice.claims if (c.dataset, c.threat) not in shown_places]
    grids = [*claims_only(other_claims), *certified_grids, *corruption_grids]
    parts += [render(grid, format, width, choice.header) for grid in grids]
    if not parts:
        hidden = sum(1 for _ in every_row(boards))
        parts.append(_HIDDEN.format(hidden) if hidden else _NO_RECORDS)
    if left_out and choice.header:
        prefix, escape = "% " if format == "latex" else "", markdown if format == "md" else plain
        parts.append(f"{prefix}Left out:\n" + "".join(f"{prefix}-  {escape(text)}\n" for text in left_out))
    return ("\n" if choice.header else "").join(parts)


def _parts(leaderboard: Leaderboard, format: str, width: int, choice: Choice) -> Iterator[str]:
    """A leaderboard and the further tables of its dataset and threat."""
    grids, place = [], (leaderboard.dataset, leaderboard.threat)
    if leaderboard.main:
        claims = [claim for claim in choice.claims if (claim.dataset, claim.threat) == place]
        grids = [with_claims(_grid(leaderboard.main, choice), claims), *_draws(leaderboard.main)]
    further = [grid for table in leaderboard.more for grid in (_grid(table, choice), *_draws(table))]
    further += [_series_grid(leaderboard)] if leaderboard.series else []
    folded = format == "md" and choice.header and choice.more and further
    yield from (render(grid, format, width, choice.header) for grid in grids)
    if folded:
        title = f"{markdown(leaderboard.dataset)} · {markdown(leaderboard.threat)}"
        yield f"<details><summary>More attacks: {title}</summary>\n"
    if choice.more:
        yield from (render(grid, format, width, choice.header) for grid in further)
    elif further and choice.header and leaderboard.main:
        names = [f"{_suite(table, leaderboard)} ({len(table.rows)})" for table in leaderboard.more]
        names += [f"{len(leaderboard.series)} series"] if leaderboard.series else []
        text = f"--more shows {len(names)} more: {', '.join(names)}"
        wrapped = fill(plain(text), width, break_long_words=False, break_on_hyphens=False)
        yield {"latex": f"% {plain(text)}", "md": markdown(text)}.get(format, wrapped) + "\n"
    if folded:
        yield "</details>\n"


def usual_columns(table: Table) -> tuple[str, ...]:
    """The columns that the protocol chooses, or the usual ones, without claims if there are none."""
    protocol = catalog.protocols().get(table.job.protocol)
    if protocol and protocol.columns:
        kind = f"column of the protocol {protocol.name}:"
        return tuple(one_of(kind, _OLD.get(name, name), tuple(COLUMNS)) for name in protocol.columns)
    claims = any(row.claimed is not None for row in table.rows)
    return tuple(name for name in USUAL if claims or name != "claimed")


def _suite(table: Table, leaderboard: Leaderboard) -> str:
    """The suite of a table, with the number of images if that differs from the leaderboard's."""
    n = table.job.n
    same = leaderboard.main is not None and n == leaderboard.main.job.n
    return table.suite if same else f"{table.suite} on {n:,} images"


def _draws(table: Table) -> list[Grid]:
    return draws_grids([(row.name, row.record) for row in table.rows])


def _grid(table: Table, choice: Choice) -> Grid:
    columns = choice.columns or usual_columns(table)
    marked = ((row.name, "", [ResultWarning(*warning) for warning in row.warnings]) for row in table.rows)
    return Grid(
        title=f"{table.title} (protocol {table.job.protocol})",
        columns=tuple(COLUMNS[name] for name in columns),
        groups=(tuple(tuple(_cell(row, name, choice.intervals) for name in columns) for row in table.rows),),
        names=frozenset(COLUMNS[name] for name in _WORDS),
        numbers=_NUMBERS,
        best=frozenset(("clean %", "robust %")),
        notes=(*warning_notes(marked, mark=""), *table.remarks, *table.missing),
    )


def _series_grid(leaderboard: Leaderboard) -> Grid:
    columns = ("defense", "suite", "knowledge", "over", "curve", "value: robust %")
    rows = tuple(
        (series.defense, series.suite, series.knowledge, series.setting, series.sparkline, series.values)
        for series in leaderboard.series
    )
    title = f"{leaderboard.dataset} · {leaderboard.threat} · robust accuracy over a radius or a setting"
    return Grid(title, columns, (rows,), names=frozenset(columns[:4]))


def _cell(row: Row, name: str, intervals: bool) -> str:
    """The text of a cell."""
    if name in ("clean", "robust"):
        accuracy = row.record.clean_accuracy if name == "clean" else row.record.robust_accuracy
        return figure(accuracy) if intervals else percent(accuracy)
    if name == "rank":
        return row.rank
    if name == "warnings":
        return row.why_not_ranked
    value = _VALUES[name](row)
    if value is None or value == "":
        return EMPTY
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else value


def _percent(share: float) -> float:
    return round(100 * share, 4)


# Values for programs: numbers as numbers, accuracies in percent.
_VALUES: dict[str, Callable[[Row], Any]] = {
    "rank": lambda row: None if row.rank == NO_RANK else int(row.rank),
    "defense": lambda row: row.name,
    "clean": lambda row: _percent(row.record.clean_accuracy.value),
    "robust": lambda row: _percent(row.record.robust_accuracy.value),
    "claimed": lambda row: row.claimed,
    "best-known": lambda row: _percent(row.best_known.value),
    "warnings": lambda row: row.why_not_ranked,
    "suite": lambda row: row.record.job.suite.name,
    "knowledge": lambda row: row.record.job.knowledge,
    "n": lambda row: row.record.job.n,
    "architecture": lambda row: kinds(row.record)[1],
    "parameters": lambda row: row.record.job.defense.parameters,
    "paper": lambda row: card.paper if (card := catalog.cards().get(row.record.job.defense.name)) else "",
    "date": lambda row: row.record.finished[:10],
}


def _flat(boards: Sequence[Leaderboard], choice: Choice) -> Iterator[dict[str, Any]]:
    """A mapping for each row. The interval of an accuracy has separate fields."""
    for place, leaderboard, row in every_row(boards):
        record = row.record
        fields: dict[str, Any] = {
            "table": place,
            "dataset": leaderboard.dataset,
            "threat": record.job.threat,
            "protocol": record.job.protocol,
        }
        fields = {} if choice.columns else fields
        for name in choice.columns or COLUMNS:
            key = name.replace("-", "_")
            fields[key] = _VALUES[name](row)
            if name in ("clean", "robust") and choice.intervals:
                accuracy = record.clean_accuracy if name == "clean" else record.robust_accuracy
                fields[f"{key}_low"], fields[f"{key}_high"] = map(_percent, accuracy.interval)
        if not choice.columns:
            single = over_draws(record, "robust", "single_draw")
            fields |= {"single_draw": None if single is None else _percent(single.value), "key": record.key}
        yield fields


def all_rows(boards: Sequence[Leaderboard], choice: Choice) -> str:
    """Every row as CSV; an unknown value is empty."""
    rows = list(_flat(boards, choice))
    names = tuple(rows[0]) if rows else tuple(choice.columns or COLUMNS)
    cells = tuple(tuple("" if value is None else str(value) for value in row.values()) for row in rows)
    return render(Grid("", names, (cells,)), "csv", header=choice.header)

"""The tables of papers as files: `papers/*.toml` and files of users."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from robench import catalog
from robench.catalog import find_suite, make, read_toml
from robench.core import registry
from robench.core.errors import UsageError, unknown_name
from robench.core.trust import admit
from robench.records.record import Record
from robench.reports.dataset_transfer import transfer
from robench.reports.diffbreak import diffbreak
from robench.reports.purifiers import purifiers
from robench.reports.table import Grid
from robench.reports.unforeseen import unforeseen
from robench.threats.knowledge import check_knowledge
from robench.threats.threat import Threat

# Tables of the records of a ladder; each function takes the records and the name of the ladder.
SHAPES: dict[str, Callable[[Sequence[Record], str], list[Grid]]] = {
    "purifiers": purifiers,
    "diffbreak": diffbreak,
    "unforeseen": unforeseen,
    "transfer": transfer,
}


@dataclass(frozen=True)
class Column:
    """A measured quantity: clean accuracy if there is no attack."""

    name: str
    attack: str = ""
    knowledge: str = "full"
    path: Path = Path()


@dataclass(frozen=True)
class Row:
    """A measured defense.

    Attributes:
        defense: the defense here; if it has a card, its claims are the published figures.
        published: published figures that no card has, by column, in percent: a number, or "about 74".
        source: the source of these figures.
        ours: whether there are no published figures.
        facts: further columns, such as the time of the training, as text.
    """

    name: str
    defense: str = ""
    published: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    ours: bool = False
    facts: dict[str, str] = field(default_factory=dict)
    path: Path = Path()


@dataclass(frozen=True)
class Table:
    """One table: dataset, threat, rows and columns.

    Attributes:
        notes: how its figures were measured.
        differences: pairs of rows; a second table shows how the first of each differs from the second on the same
            images.
    """

    title: str
    dataset: str
    threat: str
    columns: list[Any]
    rows: list[Any]
    notes: list[str] = field(default_factory=list)
    differences: list[list[str]] = field(default_factory=list)
    path: Path = Path()


@dataclass(frozen=True)
class Paper:
    """The tables of a paper, or a ladder of attacks whose records fill tables.

    Attributes:
        ladder: a suite with rungs; shape: the layout of its tables, one of SHAPES; example: a suitable defense.
    """

    name: str
    title: str
    tables: list[Any] = field(default_factory=list)
    ladder: str = ""
    shape: str = ""
    example: str = ""
    notes: list[str] = field(default_factory=list)
    path: Path = Path()


@cache
def papers() -> dict[str, Paper]:
    """All papers with tables, by name."""
    return {path.stem: read(path) for path in sorted(catalog.folder("paper").glob("*.toml"))}


def find_paper(name: str) -> Paper:
    """The paper called `name`, or the paper in the TOML file of that path.

    Raises:
        UsageError: for an unknown paper, listing the known ones.
    """
    if name.endswith(".toml"):
        admit(name, "is another file")
        paper = read(Path(name))
        _check_attacks(paper)
        return paper
    if name not in papers():
        raise unknown_name("paper", name, papers())
    return papers()[name]


def read(path: Path) -> Paper:
    """The tables in a TOML file.

    Raises:
        ResourceError: when it cannot be read.
        UsageError: when it is not TOML, or a field is unknown, missing or wrong.
    """
    paper = make(Paper, {"name": path.stem, **read_toml(path)}, path)
    if bool(paper.tables) == bool(paper.ladder):
        raise UsageError(f"{path}: expected either tables [[tables]] or a ladder")
    if paper.ladder and paper.shape not in SHAPES:
        raise UsageError(f"{path}: shape = {paper.shape!r}: expected one of {', '.join(SHAPES)}")
    return replace(paper, tables=[_table(table, path) for table in paper.tables])


def _check_attacks(paper: Paper) -> None:
    """Refuse attacks that cannot be built, or not in the threat of their table."""
    from robench.attacks.build import build_attacks  # imports torch

    for table in paper.tables:
        threat = Threat.parse(table.threat)
        for column in table.columns:
            if column.attack:
                build_attacks(find_suite(column.attack).specs(threat.norm), threat)


def _table(table: Any, path: Path) -> Table:
    table_file = make(Table, table, path)
    columns = [make(Column, entry, path) for entry in table_file.columns]
    rows = [make(Row, entry, path) for entry in table_file.rows]
    threat = Threat.parse(table_file.threat)
    for column in columns:
        if column.attack:
            attack_specs(column, threat)
    names = [row.name for row in rows]
    for pair in table_file.differences:
        if len(set(pair)) != 2 or any(names.count(name) != 1 for name in pair):
            raise UsageError(
                f"{path}: differences has {pair}: expected pairs of two rows of {', '.join(names)}"
            )
    known = [column.name for column in columns]
    if twice := [name for name in known if known.count(name) > 1]:
        raise UsageError(f'{path}: two columns are called "{twice[0]}"')
    for column in columns:
        check_knowledge(column.knowledge)
    for row in rows:
        for name, value in row.published.items():
            if name not in known:
                raise UsageError(
                    f'{path}: {row.name} has a figure for the column "{name}": expected one of {", ".join(known)}'
                )
            number = value.removeprefix("about ") if isinstance(value, str) else value
            try:
                valid = not isinstance(number, bool) and 0 <= float(number) <= 100
            except (TypeError, ValueError):
                valid = False
            if not valid:
                raise UsageError(
                    f"{path}: {row.name} has {name} = {value!r}: expected a percentage, optionally after about"
                )
        if row.published and not row.source:
            raise UsageError(f"{path}: {row.name} has published figures but no source")
    return replace(table_file, columns=columns, rows=rows)


def attack_specs(column: Column, threat: Threat) -> tuple[str, ...]:
    """Canonical specs of the attacks of a column."""
    # Not `build_attacks`, which imports torch.
    return tuple(
        str(registry.attacks.canonical(spec)) for spec in find_suite(column.attack).specs(threat.norm)
    )

"""What the pages say, in words and numbers, before any of it is HTML."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace

from robench import catalog
from robench.catalog import Card
from robench.core import specs
from robench.core.errors import RobenchError
from robench.core.formatting import one_of
from robench.defenses import loaders
from robench.records.record import Record
from robench.records.store import record_folder, slug
from robench.reports import board
from robench.reports.board import Row, Section
from robench.reports.cells import on_images, on_protocol, run_command
from robench.reports.formatting import by_draws
from robench.reports.table import SORTS
from robench.statistics.accuracy import Accuracy, interval, percent

# What is known of the defense decides what a figure means, so it is said in full above every table.
KNOWLEDGE = {
    "full": "the attacker knows the whole defense",
    "bpda": "the attacker knows the defense and replaces the purifier's gradient by the identity (BPDA)",
    "oblivious": "the attacker does not know the purifier",
    "transfer": "the attack is made on another network and carried over",
    "surrogate": "the attacker takes gradients from another network and asks the defense",
}
ADAPTIVE = ("full", "bpda")
_ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")


@dataclass(frozen=True)
class Figure:
    """An accuracy in percent with the ends of its interval, as numbers to draw and texts to read."""

    value: float
    low: float
    high: float
    text: str
    interval: str

    @classmethod
    def of(cls, accuracy: Accuracy) -> "Figure":
        low, high = (100 * end for end in accuracy.interval)
        return cls(100 * accuracy.value, low, high, percent(accuracy), interval(accuracy))


@dataclass(frozen=True)
class Line:
    """One row of a table, and one record of a defense's page.

    Attributes:
        name: with the seed.
        anchor: of the record on the defense's page.
        band: 0 or 1, changing where the rank does.
        doubts: its health marks, as (code, text).
    """

    row: Row
    name: str
    family: str
    architecture: str
    anchor: str
    band: int
    doubts: tuple[tuple[str, str], ...]
    clean: Figure
    robust: Figure
    best_known: Figure
    page: str = ""

    @property
    def record(self) -> Record:
        return self.row.record

    @property
    def order(self) -> int:
        """The rank as a number, with the rows that have none last."""
        return int(self.row.rank) if self.row.rank.isdigit() else 10**6


@dataclass(frozen=True)
class Table:
    """What is ranked together: one suite, one knowledge, one set of images."""

    suite: str
    attacks: tuple[str, ...]
    knowledge: str
    known: str
    n: int
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Part:
    """One protocol under one threat, with its tables; `columns` are those that the protocol chooses."""

    protocol: str
    threat: str
    description: str
    columns: frozenset[str]
    tables: tuple[Table, ...]
    remarks: tuple[str, ...]


# The lines of one defense, with the table and the part that they stand in.
Entry = tuple[Part, Table, tuple[Line, ...]]


@dataclass(frozen=True)
class Page:
    """One defense: its card, if there is one, and its records by what the attacker knew.

    Attributes:
        levels: a level of knowledge, with what was found under it; the whole defense before less.
    """

    name: str
    file: str
    card: Card | None
    family: str
    architecture: str
    levels: tuple[tuple[str, tuple[Entry, ...]], ...]


def parts(records: Iterable[Record], sort: str = "robust") -> list[Part]:
    """The sections of the board, as tables.

    Raises:
        UsageError: for a column that a board cannot be sorted by.
    """
    one_of("column", sort, SORTS)
    anchors: dict[str, int] = {}
    made = [_part(board.sort_rows(section, sort), anchors) for section in board.sections(records)]
    files = _files(line.record.job.defense.name for part in made for t in part.tables for line in t.lines)
    return [
        replace(part, tables=tuple(replace(table, lines=_paged(table.lines, files)) for table in part.tables))
        for part in made
    ]


def pages(found: list[Part]) -> list[Page]:
    """One page for each defense, by name."""
    own: dict[str, list[Entry]] = {}
    for part in found:
        for table in part.tables:
            for name in dict.fromkeys(line.record.job.defense.name for line in table.lines):
                lines = tuple(line for line in table.lines if line.record.job.defense.name == name)
                own.setdefault(name, []).append((part, table, lines))
    return [_page(name, own[name]) for name in sorted(own)]


def known(knowledge: str) -> str:
    """What the attacker knew, in words."""
    kind, _, other = knowledge.partition(":")
    return KNOWLEDGE.get(kind, knowledge) + (f" ({other})" if other else "")


def adaptive(knowledge: str) -> bool:
    """Whether the attack was made for the defense as it is."""
    return knowledge.partition(":")[0] in ADAPTIVE


def reproduce(record: Record) -> str:
    """The command that makes the record again, under `results`."""
    job = record.job
    suite = catalog.suites().get(job.suite.name)
    attack = job.suite.name if suite and not suite.rungs else "+".join(job.suite.attacks)
    protocol = catalog.protocols().get(job.protocol)
    if protocol and (str(protocol.dataset), protocol.threat, protocol.samples) == (
        job.dataset.name,
        job.threat_model,
        job.n,
    ):
        images = on_protocol(job.protocol)
    else:
        images = on_images(job)
    more = ["--seed", str(job.seed)] if job.seed else []
    more += ["--precision", job.precision, "--batch-size", str(job.batch_size)]
    return run_command(job.defense.name, attack, images, job.knowledge, more)


def verify(record: Record) -> str:
    """The command that re-checks the record where `reproduce` has put it."""
    job = record.job
    place = record_folder(
        "results", job.protocol, job.defense.name, job.suite.name, job.knowledge, job.seed
    ).as_posix()
    return shlex.join(["robench", "verify", place])


def other_weights(record: Record) -> bool:
    """Whether the record is of other weights than the card's; a purifier's digest is of two files, so not for those."""
    card = catalog.cards().get(record.job.defense.name)
    digest = record.job.defense.checkpoint_sha256
    return bool(card and not card.classifier and card.sha256 and digest and card.sha256 != digest)


def draws(record: Record) -> str:
    """What a randomised defense scores by other counts; empty for others."""
    return by_draws(record)


def papers(text: str) -> list[str]:
    """The arXiv numbers in a text."""
    return _ARXIV.findall(text)


def _part(section: Section, anchors: dict[str, int]) -> Part:
    protocol = catalog.protocols().get(section.protocol)
    return Part(
        section.protocol,
        section.threat,
        protocol.description if protocol else "",
        frozenset(board.chosen_columns(section)),
        tuple(_table(section, group, anchors) for group in section.groups),
        section.remarks,
    )


def _table(section: Section, group: tuple[Row, ...], anchors: dict[str, int]) -> Table:
    lines, band, before = [], 1, ""
    for row in group:
        band, before = (band if row.rank == before else 1 - band), row.rank
        lines.append(_line(section, row, band, anchors))
    job = group[0].record.job
    return Table(job.suite.name, job.suite.attacks, job.knowledge, known(job.knowledge), job.n, tuple(lines))


def _line(section: Section, row: Row, band: int, anchors: dict[str, int]) -> Line:
    record = row.record
    name = board.shown_name(record)
    notes = [section.notes[mark - 1].removeprefix(f"{name}: ") for mark in row.marks]
    doubts = tuple((code, text) for code, _, text in (note.partition(": ") for note in notes))
    anchor = f"record-{slug(record.key[:12])}"
    anchors[anchor] = anchors.get(anchor, 0) + 1
    if anchors[anchor] > 1:
        anchor += f"-{anchors[anchor]}"
    family, architecture = kinds(record)
    clean, robust = Figure.of(record.clean_accuracy), Figure.of(record.robust_accuracy)
    best = Figure.of(row.best_known)
    return Line(row, name, family, architecture, anchor, band, doubts, clean, robust, best)


def kinds(record: Record) -> tuple[str, str]:
    """Family and architecture: the card's builder, or the loader of a spec; empty where neither is known."""
    name = record.job.defense.name
    card = catalog.cards().get(name)
    family = record.job.defense.family or (card.family if card else "")
    try:
        builder = (card.spec if card else specs.parse(name)).name
    except RobenchError:
        return family, ""
    scheme = loaders.scheme_of(builder)
    return family, scheme or (builder if card else "")


def _files(names: Iterable[str]) -> dict[str, str]:
    """A file for each name; two names that a disk would take for one get different ones."""
    taken: dict[str, int] = {}
    files = {}
    for name in sorted(set(names)):
        stem = slug(name)
        count = taken[stem.lower()] = taken.get(stem.lower(), 0) + 1
        # A tilde is in no slug, so the number cannot make it another's.
        files[name] = f"{stem}~{count}.html" if count > 1 else f"{stem}.html"
    return files


def _paged(lines: tuple[Line, ...], files: dict[str, str]) -> tuple[Line, ...]:
    return tuple(replace(line, page=files[line.record.job.defense.name]) for line in lines)


def _page(name: str, own: list[Entry]) -> Page:
    first = own[0][2][0]
    levels: dict[str, list[Entry]] = {}
    for entry in sorted(own, key=lambda entry: not adaptive(entry[1].knowledge)):
        levels.setdefault(entry[1].knowledge, []).append(entry)
    return Page(
        name,
        first.page,
        catalog.cards().get(name),
        first.family,
        first.architecture,
        tuple((knowledge, tuple(entries)) for knowledge, entries in levels.items()),
    )

"""A board: a table made from records alone.

Like is ranked with like: rows under the same suite, knowledge and images. A row with a health mark has no
rank; what is doubted stands beneath.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robench.errors import ResourceError
from robench.results import record as record_file
from robench.results.record import Record, read_record
from robench.results.store import SUPERSEDED
from robench.results.wording import by_draws, interval, markdown, one_of, percent, plain

FORMATS = ("text", "md")
COLUMNS = ("rank", "defense", "clean %", "robust %", "suite", "knowledge", "n", "marks")
NO_RANK = "–"
_NUMBERS = ("rank", "clean %", "robust %", "n")
_WIDTH = 100


@dataclass(frozen=True)
class Collection(Sequence[Record]):
    """The records found under some folders.

    Attributes:
        records: those that could be read.
        unreadable: one line for each that could not.
    """

    records: tuple[Record, ...]
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


@dataclass(frozen=True)
class Row:
    """One line of a board: its rank (NO_RANK where it is marked) and the numbers of its footnotes."""

    rank: str
    record: Record
    marks: tuple[int, ...]


@dataclass(frozen=True)
class Section:
    """What is ranked together, best first, in one protocol and threat.

    Attributes:
        notes: the doubts, numbered from 1; drawn: what randomised defenses score by other counts.
    """

    protocol: str
    threat: str
    groups: tuple[tuple[Row, ...], ...]
    notes: tuple[str, ...]
    drawn: tuple[str, ...] = ()


def collect(results: Iterable[Path | str]) -> Collection:
    """Every record under the folders, in the order of their paths; superseded and partial ones are left out.

    Raises:
        ResourceError: when a folder is not there.
    """
    found: dict[Path, Record] = {}
    unreadable = []
    for root in map(Path, results):
        if not root.exists():
            raise ResourceError(
                f"{root}: no such folder: robench run writes records there, --results elsewhere"
            )
        files = [root] if root.is_file() else sorted(root.rglob(record_file.FILE))
        for file in files:
            inside = file.relative_to(root).parts[:-1]
            if SUPERSEDED in inside or any(part.endswith(".partial") for part in inside):
                continue
            try:
                found.setdefault(file.resolve(), read_record(file))
            except ResourceError as error:
                unreadable.append(str(error))
    return Collection(tuple(found.values()), tuple(unreadable))


def board(records: Sequence[Record], format: str = "text", width: int = _WIDTH) -> str:
    """A table for each protocol, ending in a newline.

    Args:
        records: from `collect`, whose unreadable files are then named at the end, or any others.
        format: "text" or "md".
        width: of the text, in characters.

    Raises:
        UsageError: for another format.
    """
    render: Callable[[Section, int], str] = _RENDERERS[one_of("format", format, FORMATS)]
    parts = [render(section, width) for section in sections(records)]
    if not parts:
        parts.append("No records: robench run --defense mimir --attack autoattack makes one.\n")
    lost = records.unreadable if isinstance(records, Collection) else ()
    clean = markdown if format == "md" else plain
    if lost:
        parts.append("Left out:\n" + "".join(f"- {clean(line)}\n" for line in lost))
    return "\n".join(parts)


def sections(records: Iterable[Record]) -> Iterator[Section]:
    """The records by protocol and threat, then in groups of like with like, each by robust accuracy."""
    tables: dict[tuple[str, str], dict[tuple, list[Record]]] = {}
    for record in records:
        job = record.job
        groups = tables.setdefault((job.protocol, job.threat), {})
        # What an attacker knew comes first, the whole defense before less: the figures mean different things.
        like = (job.knowledge != "full", job.knowledge, job.suite.name, job.suite.attacks, job.dataset.digest)
        groups.setdefault(like, []).append(record)
    for protocol, threat in sorted(tables):
        notes: list[str] = []
        groups = tables[protocol, threat]
        ranked = tuple(tuple(_ranked(groups[key], notes)) for key in sorted(groups))
        drawn = [(r.record, by_draws(r.record)) for group in ranked for r in group]
        said = tuple(f"{_name(record)}, {record.job.suite.name}: {text}" for record, text in drawn if text)
        yield Section(protocol, threat, ranked, tuple(notes), said)


def _ranked(records: list[Record], notes: list[str]) -> Iterator[Row]:
    order = sorted(
        records,
        key=lambda r: (-r.robust_accuracy.value, -r.clean_accuracy.value, r.job.defense.name, r.job.seed),
    )
    sound = [record.robust_accuracy.value for record in order if not record.health]
    for record in order:
        marks = []
        for mark in record.health:
            notes.append(f"{_name(record)}: {mark.code}: {mark.text}")
            marks.append(len(notes))
        # Equal figures share the better rank.
        rank = NO_RANK if record.health else str(1 + sound.index(record.robust_accuracy.value))
        yield Row(rank, record, tuple(marks))


def _name(record: Record) -> str:
    seed = f" (seed {record.job.seed})" if record.job.seed else ""
    return record.job.defense.name + seed


def _cells(row: Row, clean_text: Callable[[str], str]) -> tuple[str, ...]:
    job, clean, robust = row.record.job, row.record.clean_accuracy, row.record.robust_accuracy
    return (
        row.rank,
        clean_text(_name(row.record)),
        f"{percent(clean)} {interval(clean)}",
        f"{percent(robust)} {interval(robust)}",
        clean_text(job.suite.name),
        clean_text(job.knowledge),
        f"{job.n:,}",
        " ".join(f"({number})" for number in row.marks),
    )


def _text(section: Section, width: int) -> str:
    grid = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold"
    )
    for name in COLUMNS:
        grid.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold")
    for group in section.groups:
        for row in group:
            grid.add_row(*map(Text, _cells(row, plain)))
        grid.add_section()
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(Text(plain(f"{section.protocol} · {section.threat}")), Text(), sep="\n")
    console.print(grid)
    if section.notes:
        console.print()
    for number, note in enumerate(section.notes, 1):
        console.print(Text(plain(f"({number}) {note}")))
    if section.drawn:
        console.print(Text(), *(Text(plain(line)) for line in section.drawn), sep="\n")
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())


def _markdown(section: Section, width: int) -> str:
    lines = [f"### {markdown(section.protocol)} · {markdown(section.threat)}", ""]
    lines.append(f"| {' | '.join(COLUMNS)} |")
    lines.append("|" + "|".join("---:" if name in _NUMBERS else "---" for name in COLUMNS) + "|")
    for group in section.groups:
        lines += [f"| {' | '.join(_cells(row, markdown))} |" for row in group]
    if section.notes:
        lines += ["", *(f"- ({number}) {markdown(note)}" for number, note in enumerate(section.notes, 1))]
    if section.drawn:
        lines += ["", *(f"- {markdown(line)}" for line in section.drawn)]
    return "\n".join(lines) + "\n"


_RENDERERS = {"text": _text, "md": _markdown}

"""A board: a table made from records alone.

Like is ranked with like: rows under the same suite, knowledge and images. A rank says how many defenses are better
beyond chance, by McNemar's exact test on the same images: two rows six images apart share it. A row with a health
mark has no rank; what is doubted stands beneath.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from robench import catalog
from robench.core import specs
from robench.core.formatting import markdown, one_of
from robench.core.sanitize import plain
from robench.records.collection import Collection
from robench.records.identity import by_subject, subjects
from robench.records.randomized import single_draw
from robench.records.record import Record
from robench.records.samples import held
from robench.reports import corruption
from robench.reports.cells import on_protocol, run_command
from robench.reports.formatting import by_draws
from robench.reports.robustbench import Claim, with_claims
from robench.reports.table import FORMATS, WIDTH, Grid, render
from robench.statistics.accuracy import Accuracy, interval, mcnemar, mean_and_deviation, percent
from robench.threats.threat import Threat, same_threat

COLUMNS = (
    "rank", "defense", "clean %", "robust %", "claimed %", "best known %", "suite", "knowledge", "n", "marks"
)  # fmt: skip
NO_RANK = "–"
EMPTY = "–"
# Two defenses whose difference has at least this p-value share a rank.
SAME = 0.05
_NUMBERS = frozenset(("rank", "clean %", "robust %", "claimed %", "best known %", "n"))


@dataclass(frozen=True)
class Row:
    """One line of a board.

    Attributes:
        rank: 1 + the number of sound rows that are better beyond chance; NO_RANK where the row is marked.
        marks: numbers of its footnotes.
        claimed: robust accuracy that its authors claim at this threat, in percent, or None.
        best_known: the lowest robust accuracy of all records of this defense, under any name, on these images at this
            threat or a smaller radius of it.
    """

    rank: str
    record: Record
    marks: tuple[int, ...]
    claimed: float | None
    best_known: Accuracy


@dataclass(frozen=True)
class Section:
    """What is ranked together, best first, in one protocol and threat.

    Attributes:
        notes: the doubts, numbered from 1.
        remarks: what randomised defenses score by other counts, and several seeds together.
        missing: for each defense that lacks a run of its protocol the command that makes it.
    """

    protocol: str
    threat: str
    groups: tuple[tuple[Row, ...], ...]
    notes: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def board(
    records: Sequence[Record],
    format: str = "text",
    width: int = WIDTH,
    sort: str = "robust",
    intervals: bool = True,
    claims: Sequence[Claim] = (),
) -> str:
    """A table for each protocol, ending in a newline; CSV is one table for all.

    Records under corruptions follow in tables of their own; CSV has them where there are no others.

    Args:
        records: from `collect`, whose files that were left out are then named at the end, or any others.
        format: "text", "md", "csv" or "latex".
        width: of the text, in characters.
        sort: the column whose best comes first in each group, one of `SORTS`.
        intervals: whether accuracies are followed by theirs.
        claims: of others, in groups of their own beneath; CSV is of records alone.

    Raises:
        UsageError: for another format or column.
    """
    one_of("format", format, FORMATS)
    one_of("column", sort, tuple(_ORDERS))
    found = [sort_rows(section, sort) for section in sections(records)]
    grids = [_grid(section, intervals) for section in found]
    apart = list(corruption.grids(records))
    if format == "csv" and (found or not apart):
        return render(_merged(found), format)
    if claims:
        placed = {
            (*_place(section), i): grid for i, (section, grid) in enumerate(zip(found, grids, strict=True))
        }
        grids = with_claims(placed, claims)
    parts = [render(grid, format, width) for grid in [*grids, *apart]]
    if not parts:
        parts.append("No records: robench run --defense mimir --attack autoattack makes one.\n")
    lost = records.left_out if isinstance(records, Collection) else ()
    clean = markdown if format == "md" else plain
    if lost:
        mark = "% " if format == "latex" else ""
        parts.append(f"{mark}Left out:\n" + "".join(f"{mark}- {clean(str(each))}\n" for each in lost))
    return "\n".join(parts)


def sections(records: Iterable[Record]) -> Iterator[Section]:
    """The records by protocol and threat, then in groups of like with like, each by robust accuracy."""
    tables: dict[tuple[str, str], dict[tuple, list[Record]]] = {}
    # Corruptions have a table of their own, and never rank beside attacks.
    records = [record for record in records if not record.corrupted]
    subject = subjects(records)
    lowest = _best_known(records, subject)
    for record in records:
        job = record.job
        groups = tables.setdefault((job.protocol, job.threat), {})
        # What an attacker knew comes first, the whole defense before less: the figures mean different things.
        like = (
            job.knowledge != "full",
            job.knowledge,
            job.suite.name,
            job.suite.attacks,
            job.dataset.digest,
            job.n,
        )
        groups.setdefault(like, []).append(record)
    for protocol, threat in sorted(tables):
        notes: list[str] = []
        groups = tables[protocol, threat]
        ranked = tuple(tuple(_ranked(groups[key], notes, lowest)) for key in sorted(groups))
        drawn = [(row.record, by_draws(row.record)) for group in ranked for row in group]
        remarks = [f"{shown_name(record)}, {_attacked_by(record)}: {text}" for record, text in drawn if text]
        for key in sorted(groups):
            remarks += _seeds(groups[key], subject)
        missing = tuple(_missing(protocol, threat, [row.record for group in ranked for row in group]))
        yield Section(protocol, threat, ranked, tuple(notes), tuple(remarks), missing)


def _attacked_by(record: Record) -> str:
    job = record.job
    return job.suite.name if job.knowledge == "full" else f"{job.suite.name} @{job.knowledge}"


def _missing(protocol: str, threat: str, records: list[Record]) -> Iterator[str]:
    """What the protocol wants of each defense and no record has."""
    known = catalog.protocols().get(protocol)
    if known is None or not same_threat(known.threat_name, threat):
        return
    have = {(r.job.defense.name, r.job.suite.name, r.job.knowledge) for r in records}
    for name in sorted({record.job.defense.name for record in records}):
        for suite, level in itertools.product(known.suites, known.knowledge):
            if (name, suite, level) not in have:
                command = run_command(name, suite, on_protocol(protocol), level)
                yield f"{name} lacks {suite}{'' if level == 'full' else f'@{level}'}: {command}"


def _place(section: Section) -> tuple[str, str]:
    """The data set of a section, as it is called everywhere, and its threat."""
    return specs.parse(section.groups[0][0].record.job.dataset.name).name, section.threat


def _best_known(records: Sequence[Record], subject: dict[int, int]) -> dict[int, Accuracy]:
    """By the id of a record the lowest robust accuracy of its defense on its images, by whatever name.

    What fools it within a smaller radius does so within a larger one.
    """
    threats = {id(record): record.job.threat_model for record in records}
    found = {}
    for own in by_subject(records, subject).values():
        for record in own:
            threat = threats[id(record)]
            bounds = [
                other.robust_accuracy
                for other in own
                if threats[id(other)].kind == threat.kind
                and threats[id(other)].eps <= threat.eps * (1 + 1e-9)
            ]
            found[id(record)] = min(bounds, key=lambda accuracy: accuracy.value)
    return found


def _ranked(records: list[Record], notes: list[str], lowest: dict[int, Accuracy]) -> Iterator[Row]:
    order = sorted(
        records,
        key=lambda r: (-r.robust_accuracy.value, -r.clean_accuracy.value, r.job.defense.name, r.job.seed),
    )
    ranks = _ranks([record for record in order if not record.health])
    for record in order:
        marks, rank = [], ranks.get(id(record), NO_RANK)
        doubts = [f"{mark.code}: {mark.text}" for mark in record.health]
        if not doubts and rank == NO_RANK:
            doubts = ["no-samples: its samples.parquet cannot be read, so it cannot be compared"]
        for doubt in doubts:
            notes.append(f"{shown_name(record)}: {doubt}")
            marks.append(len(notes))
        yield Row(rank, record, tuple(marks), _claimed(record), lowest[id(record)])


def _ranks(records: list[Record]) -> dict[int, str]:
    """By the id of the record; those without samples have none."""
    kept = {id(record): own for record in records if (own := held(record)) is not None}
    if not kept:
        return {}
    matrix = np.stack(list(kept.values())).astype(np.int64)
    # only[i, j]: images that i has right and j has not.
    only = matrix @ (1 - matrix).T
    better = (only > only.T) & (np.vectorize(_chance)(only, only.T) < SAME)
    return {key: str(1 + int(count)) for key, count in zip(kept, better.sum(0), strict=True)}


@cache
def _chance(b: int, c: int) -> float:
    return mcnemar(int(b), int(c))


def _claimed(record: Record) -> float | None:
    """The lowest robust accuracy that the card's authors claim at the record's threat."""
    card = catalog.cards().get(record.job.defense.name)
    if card is None or card.dataset != specs.parse(record.job.dataset.name).name:
        return None
    threat = record.job.threat_model
    return min((c["robust"] for c in card.claims if Threat.parse(c["threat"]) == threat), default=None)


def _seeds(records: list[Record], subject: dict[int, int]) -> Iterator[str]:
    """Several seeds of one run, taken together."""
    same: dict[tuple, list[Record]] = {}
    for record in records:
        same.setdefault((subject[id(record)], record.job.defense.name), []).append(record)
    for own in same.values():
        if len({record.job.seed for record in own}) > 1:
            mean, deviation = mean_and_deviation([100 * record.robust_accuracy.value for record in own])
            job = own[0].job
            yield (
                f"{job.defense.name}, {job.suite.name}: robust {mean:.2f} ± {deviation:.2f} %, mean and standard "
                f"deviation of {len(own)} seeds"
            )


def shown_name(record: Record) -> str:
    """The defense, with the seed where it is not 0."""
    seed = f" (seed {record.job.seed})" if record.job.seed else ""
    return record.job.defense.name + seed


# A row for each of `SORTS`.
_ORDERS: dict[str, Callable[[Row], tuple]] = {
    "robust": lambda row: (-row.record.robust_accuracy.value,),
    "clean": lambda row: (-row.record.clean_accuracy.value,),
    "claimed": lambda row: (-(row.claimed if row.claimed is not None else -1.0),),
    "best-known": lambda row: (-row.best_known.value,),
    "defense": lambda row: (shown_name(row.record),),
    "n": lambda row: (-row.record.job.n,),
}


def sort_rows(section: Section, sort: str) -> Section:
    """The section with each group ordered by a column, one of `SORTS`, the best first."""
    return replace(section, groups=tuple(tuple(sorted(g, key=_ORDERS[sort])) for g in section.groups))


def _cells(row: Row, intervals: bool) -> dict[str, str]:
    def said(accuracy: Accuracy) -> str:
        return percent(accuracy) + (f" {interval(accuracy)}" if intervals else "")

    job = row.record.job
    return {
        "rank": row.rank,
        "defense": shown_name(row.record),
        "clean %": said(row.record.clean_accuracy),
        "robust %": said(row.record.robust_accuracy),
        "claimed %": EMPTY if row.claimed is None else f"{row.claimed:.2f}",
        "best known %": percent(row.best_known),
        "suite": job.suite.name,
        "knowledge": job.knowledge,
        "n": f"{job.n:,}",
        "marks": " ".join(f"({number})" for number in row.marks),
    }


def chosen_columns(section: Section) -> tuple[str, ...]:
    """Those that the protocol chooses; else all, without claims where nobody claims anything."""
    known = catalog.protocols().get(section.protocol)
    if known and known.columns:
        return tuple(one_of(f"column of the protocol {known.name}:", name, COLUMNS) for name in known.columns)
    claims = any(row.claimed is not None for group in section.groups for row in group)
    return tuple(name for name in COLUMNS if claims or name != "claimed %")


def _grid(section: Section, intervals: bool) -> Grid:
    columns = chosen_columns(section)
    return Grid(
        title=f"{section.protocol} · {section.threat}",
        columns=columns,
        groups=tuple(
            tuple(tuple(_cells(row, intervals)[name] for name in columns) for row in group)
            for group in section.groups
        ),
        names=frozenset(("defense", "suite", "knowledge")),
        numbers=_NUMBERS,
        best=frozenset(("clean %", "robust %")),
        notes=(
            *(f"({i}) {note}" for i, note in enumerate(section.notes, 1)),
            *section.remarks,
            *section.missing,
        ),
    )


def _merged(found: list[Section]) -> Grid:
    """One table of all sections, for programs."""
    columns = ("protocol", "threat", *COLUMNS, "single draw %")
    rows = []
    for section in found:
        for group in section.groups:
            for row in group:
                cells = _cells(row, True)
                single = single_draw(row.record)
                last = EMPTY if single is None else f"{100 * single.value:.2f}"
                rows.append((section.protocol, section.threat, *(cells[name] for name in COLUMNS), last))
    return Grid("", columns, (tuple(rows),))

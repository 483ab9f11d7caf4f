"""The table of DiffBreak (arXiv 2411.16598): randomized purifiers in their worst draw and by majority vote."""

from collections.abc import Iterator, Sequence

from robench.records.randomized import FIELD, over_draws
from robench.records.record import Record
from robench.reports.formatting import EMPTY, cell
from robench.reports.purifiers import Row, commands, find_ladder, rows_by_protocol, warnings_of
from robench.reports.table import Grid, Line
from robench.threats.threat import Threat

# Knowledge of the attackers that DiffBreak compares: they attack the purifier itself.
_KNOWLEDGE = ("bpda", "full", "known-noise")
# The images and the accuracy of each column.
_COLUMNS = {
    "clean, worst draw": ("clean", "worst_draw"),
    "clean, majority": ("clean", "majority"),
    "robust, worst draw": ("robust", "worst_draw"),
    "robust, majority": ("robust", "majority"),
}
_NOTE = (
    "worst draw: correct in every draw of the noise; majority: correct by their vote, for the same adversarial "
    "examples. Except for known-noise, and where a warning says so, no attack has seen these draws"
)


def diffbreak(records: Sequence[Record], ladder: str = "purifier-cheap") -> list[Grid]:
    """One table per protocol, with one row for each randomized purifier and attack on it.

    Args:
        ladder: the suite whose rungs are the attacks.

    Raises:
        UsageError: when the ladder does not exist.
    """
    suite = find_ladder(ladder)
    rungs = (rung for rung in suite.rungs if rung.subject == "defense" and rung.knowledge in _KNOWLEDGE)
    attacks = tuple(dict.fromkeys(rung.name for rung in rungs if rung.suits(True)))
    tables = []
    for protocol, threat, rows in rows_by_protocol(records, suite):
        randomized = [row.only(attacks) for row in rows if FIELD in row.purified.extra]
        if not randomized:
            continue
        columns = ("purifier", "attack", *_COLUMNS)
        table = Grid(
            title=f"{protocol} · {Threat.parse(threat)} · accuracy in %, 95 % intervals",
            columns=columns,
            groups=tuple(tuple(_lines(row, attacks)) for row in randomized),
            names=frozenset(columns[:2]),
            numbers=frozenset(columns[2:]),
            notes=(_NOTE, *commands(protocol, randomized, suite), *warnings_of(randomized)),
        )
        tables.append(table)
    return tables


def _lines(row: Row, attacks: Sequence[str]) -> Iterator[Line]:
    shown = dict(row.shown())
    for attack in attacks:
        yield row.purified.job.defense.name, attack, *_cells(shown.get(attack))


def _cells(record: Record | None) -> Iterator[str]:
    for images, name in _COLUMNS.values():
        warned = record is not None and images == "robust" and bool(record.health)
        yield cell(over_draws(record, images, name), warned) if record else EMPTY

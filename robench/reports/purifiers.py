"""The table of purifiers: robust accuracy under increasing attacker knowledge, from records alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from robench import catalog
from robench.catalog import Rung, Suite, find_suite
from robench.core import specs
from robench.core.errors import UsageError
from robench.core.formatting import count
from robench.records.randomized import FIELD, unattacked
from robench.records.record import Record
from robench.reports.cells import on_images, on_protocol, run_command, with_files
from robench.reports.table import Grid
from robench.statistics.accuracy import percent, span
from robench.threats.threat import Threat

EMPTY = "–"


@dataclass(frozen=True)
class Row:
    """One purifier with one classifier.

    Attributes:
        purified: a record of the purifier.
        found: the records of each column, by the name of the rungs.
        missing: columns without a record that the ladder would fill.
    """

    purified: Record
    found: dict[str, list[Record]]
    missing: tuple[str, ...]


def purifiers(records: Sequence[Record], ladder: str = "purifier") -> list[Grid]:
    """One table per protocol: undefended, oblivious, BPDA and exact gradients, with and without EOT.

    A cell has the lowest accuracy of its rungs. For a randomised purifier this is the accuracy in the worst draw, with
    the average below.

    Args:
        ladder: the suite whose rungs are the columns.

    Raises:
        UsageError: when there is no such ladder.
    """
    suite = find_ladder(ladder)
    found = ((place, list(_rows(own, suite))) for place, own in _groups(records).items())
    return [_grid(protocol, threat, rows, suite) for (protocol, threat), rows in found if rows]


def find_ladder(name: str) -> Suite:
    """The suite of that name.

    Raises:
        UsageError: when there is none, or it has no rungs.
    """
    suite = catalog.suites().get(name)
    if suite is None or not suite.rungs:
        known = ", ".join(name for name, each in catalog.suites().items() if each.rungs)
        raise UsageError(f'no ladder "{name}": expected one of {known}')
    return suite


def rows_of(records: Sequence[Record], suite: Suite) -> Iterator[Row]:
    """Every purifier with a classifier, and the records of the rungs of `suite`."""
    for own in _groups(records).values():
        yield from _rows(own, suite)


def _groups(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """The records of protocols that have a purifier, by protocol and threat."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.corrupted:
            continue
        groups.setdefault((record.job.protocol, record.job.threat), []).append(record)
    return {
        key: own for key, own in sorted(groups.items()) if any(each.job.defense.classifier for each in own)
    }


def _rows(records: list[Record], suite: Suite) -> Iterator[Row]:
    subjects: dict[tuple[str, str, int], Record] = {}
    for record in records:
        job = record.job
        if job.defense.classifier:
            subjects.setdefault((job.defense.name, job.defense.checkpoint_sha256, job.seed), record)
    for _, purified in sorted(subjects.items()):
        randomised = any(FIELD in each.extra for each in records if _of_one(each, purified))
        found: dict[str, list[Record]] = {}
        for rung in suite.rungs:
            if rung.suits(randomised):
                matching = [each for each in records if _fills(each, rung, purified)]
                found.setdefault(rung.name, []).extend(matching)
        # Runs outside the ladder, for example of a sweep, do not make a row.
        if any(_of_one(each, purified) for own in found.values() for each in own):
            yield Row(purified, found, tuple(name for name, own in found.items() if not own))


def _of_one(record: Record, purified: Record) -> bool:
    """Whether two records have the same defense name and checkpoint."""
    one, other = record.job.defense, purified.job.defense
    return (one.name, one.checkpoint_sha256) == (other.name, other.checkpoint_sha256)


def _fills(record: Record, rung: Rung, purified: Record) -> bool:
    """Whether a record is the run of `rung` on the defense of `purified`, on the same images."""
    job, wanted = record.job, purified.job
    named = wanted.defense.classifier if rung.subject == "classifier" else wanted.defense.name
    same = (named, rung.knowledge, wanted.seed, wanted.dataset.digest, wanted.n)
    if (job.defense.name, job.knowledge, job.seed, job.dataset.digest, job.n) != same:
        return False
    if rung.subject != "classifier" and not _of_one(record, purified):
        return False
    return job.suite.name == find_suite(rung.attack).name


def _grid(protocol: str, threat: str, rows: list[Row], suite: Suite) -> Grid:
    names = tuple(dict.fromkeys(rung.name for rung in suite.rungs))
    columns = ("purifier", "clean", *names, "passes", "images/s")
    notes = ["passes an image and images a second: of the strongest attack with exact gradients"]
    for row in rows:
        missing = [name for name in row.missing if _playable(name, row.purified, suite)]
        if missing:
            job = row.purified.job
            images = on_protocol(protocol) if protocol in catalog.protocols() else on_images(job)
            command = run_command(job.defense.name, suite.name, images, more=with_files(job.dataset.name))
            notes.append(f"{', '.join(missing)} of {job.defense.name}: {command}")
    notes += _warnings(rows)
    if any(FIELD in record.extra for row in rows for own in row.found.values() for record in own):
        notes.append(
            "of a randomised purifier the worst draw, clean too: any failure counts; the average beneath"
        )
    return Grid(
        title=f"{protocol} · {Threat.parse(threat)} · robust accuracy in %, 95 % intervals",
        columns=columns,
        groups=(tuple(_cells(row, suite) for row in rows),),
        names=frozenset(("purifier",)),
        numbers=frozenset(columns[1:]),
        notes=tuple(notes),
    )


def _playable(name: str, purified: Record, suite: Suite) -> bool:
    """Whether a rung can run: its surrogate's family may have no card for the data set."""
    dataset = specs.parse(purified.job.dataset.name).name
    known = {(name, card.dataset) for card in catalog.cards().values() for name in (card.family, card.name)}
    sources = [rung.knowledge.partition(":")[2] for rung in suite.rungs if rung.name == name]
    return any(not source or (source, dataset) in known for source in sources)


def _cells(row: Row, suite: Suite) -> tuple[str, ...]:
    names = dict.fromkeys(rung.name for rung in suite.rungs)
    # Rungs whose attacker has the exact gradients of the defense.
    exact = dict.fromkeys(
        rung.name for rung in suite.rungs if rung.subject == "defense" and rung.knowledge == "full"
    )
    records = [record for name in exact for record in row.found.get(name, ())]
    last = min(records, key=_robust, default=None)
    cost, speed = EMPTY, EMPTY
    if last is not None:
        cost = count(sum(last.passes.values()) / last.job.n)
        speed = count(last.job.n / last.seconds) if last.seconds else EMPTY
    clean, drawn = unattacked(row.purified), row.purified.extra.get(FIELD)
    return (
        row.purified.job.defense.name,
        f"{percent(clean)}\n{span(clean)}" + _average(drawn, "clean"),
        *(_cell(row.found.get(name)) for name in names),
        cost,
        speed,
    )


def _cell(records: list[Record] | None) -> str:
    if not records:
        return EMPTY
    record = min(records, key=_robust)
    text = f"{percent(record.robust_accuracy)}{' !' if record.health else ''}\n{span(record.robust_accuracy)}"
    return text + _average(record.extra.get(FIELD), "robust")


def _average(drawn: dict[str, Any] | None, which: str) -> str:
    return f"\navg {100 * drawn[which]['average']['value']:.2f}" if drawn else ""


def _robust(record: Record) -> float:
    return record.robust_accuracy.value


def _warnings(rows: list[Row]) -> list[str]:
    """The warnings of the records that are shown."""
    lines = []
    for row in rows:
        for name, own in row.found.items():
            if own:
                shown = min(own, key=_robust)
                subject = f"{row.purified.job.defense.name}, {name}"
                lines += [f"! {subject}: {warning.code}: {warning.text}" for warning in shown.health]
    return lines

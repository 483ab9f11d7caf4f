"""Ranking: records of the same suite, attacker knowledge and images, best first.

A rank is 1 + the number of defenses that are significantly better, by McNemar's exact test on the same images, so rows
that differ by a few images share it. A row with a warning has no rank.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from robench import catalog
from robench.core import specs
from robench.core.grouping import grouped
from robench.records.estimate import bound
from robench.records.identity import subjects
from robench.records.record import Record
from robench.records.samples import held
from robench.reports.cells import on_protocol, run_command, with_files
from robench.reports.notes import current_wording
from robench.statistics.accuracy import Accuracy, mcnemar, mean_and_deviation
from robench.threats.threat import Threat, same_threat

NO_RANK = "–"
# Two defenses whose difference has at least this p-value share a rank.
SAME = 0.05


@dataclass(frozen=True)
class Row:
    """One line of a board.

    Attributes:
        rank: 1 + the number of significantly better rows without warnings; NO_RANK for a row with a warning.
        warnings: the warnings as (code, text); a row with warnings is not ranked.
        claimed: robust accuracy that the authors claim for this threat, in percent, or None.
        peers: number of rows that it is ranked among.
        best_known: the lowest robust accuracy of all records of this defense, under any name, on these images at this
            threat or a smaller radius of it.
    """

    rank: str
    record: Record
    warnings: tuple[tuple[str, str], ...]
    claimed: float | None
    best_known: Accuracy
    peers: int = 0

    @property
    def name(self) -> str:
        """The defense, with the seed if it is not 0."""
        return shown_name(self.record)

    @property
    def why_not_ranked(self) -> str:
        """The reason, such as "not ranked: zero-gradients", or an empty string."""
        codes = dict.fromkeys(code for code, _ in self.warnings)
        return f"not ranked: {', '.join(codes)}" if codes else ""


Group = tuple[Row, ...]


@dataclass(frozen=True)
class Section:
    """The records of one protocol and threat.

    Attributes:
        groups: rows that are ranked together, best first.
        remarks: for each group, the mean over several seeds.
        missing: the commands for suites of the protocol that defenses have not been run under.
    """

    protocol: str
    threat: str
    groups: tuple[Group, ...]
    remarks: tuple[tuple[str, ...], ...] = ()
    missing: tuple[str, ...] = ()


def sections(records: Iterable[Record]) -> Iterator[Section]:
    """The records by protocol and threat, in groups that are comparable, sorted by robust accuracy."""
    tables: dict[tuple[str, str], dict[tuple, list[Record]]] = {}
    # Corruptions have separate tables and are not ranked with attacks.
    records = [record for record in records if not record.corrupted]
    subject = subjects(records)
    lowest = _best_known(records, subject)
    for record in records:
        job = record.job
        groups = tables.setdefault((job.protocol, job.threat), {})
        # Attacker knowledge comes first, with full before less, because it changes the meaning of figures.
        level, suite = (job.knowledge != "full", job.knowledge), (job.suite.name, job.suite.attacks)
        groups.setdefault((level, suite, job.dataset.digest, job.n), []).append(record)
    for (protocol, threat), groups in sorted(tables.items()):
        keys = sorted(groups)
        ranked = tuple(tuple(_ranked(groups[key], lowest)) for key in keys)
        remarks = tuple(tuple(_seeds(groups[key], subject)) for key in keys)
        missing = tuple(_missing(protocol, threat, [row.record for group in ranked for row in group]))
        yield Section(protocol, threat, ranked, remarks, missing)


def _missing(protocol: str, threat: str, records: list[Record]) -> Iterator[str]:
    """The commands for missing runs of the protocol. Tables of ladders list their own."""
    known = catalog.protocols().get(protocol)
    if known is None or not same_threat(known.threat_name, threat):
        return
    present = {(record.job.defense.name, record.job.suite.name, record.job.knowledge) for record in records}
    names = sorted({record.job.defense.name for record in records})
    ladders = {name for name, suite in catalog.suites().items() if suite.rungs}
    for suite, level in itertools.product(known.suites, known.knowledge):
        missing = [name for name in names if (name, suite, level) not in present]
        if missing and suite not in ladders:
            images = (*on_protocol(protocol), *with_files(str(known.dataset)))
            command = run_command(",".join(missing), suite, images, level)
            yield f"not yet run under {suite}{'' if level == 'full' else f'@{level}'}: {command}"


def _best_known(records: Sequence[Record], subject: dict[int, int]) -> dict[int, Accuracy]:
    """Map the id of a record to the lowest robust accuracy of its defense, under any name, on its images.

    An adversarial example within a smaller radius is also one within a larger radius.
    """
    lowest: dict[int, Accuracy] = {}
    for bounds in grouped(records, lambda r: (subject[id(r)], r.job.threat_model.kind)).values():
        bounds.sort(key=_radius)
        proven = (bound(r.robust_accuracy, r.extra) for r in bounds)
        lowest_up_to = list(itertools.accumulate(proven, partial(min, key=_value)))
        for record in bounds:
            within = bisect_right(bounds, _radius(record) * (1 + 1e-9), key=_radius)
            lowest[id(record)] = lowest_up_to[within - 1]
    return lowest


def _radius(record: Record) -> float:
    return record.job.threat_model.eps


def _value(accuracy: Accuracy) -> float:
    return accuracy.value


def _ranked(records: list[Record], lowest: dict[int, Accuracy]) -> Iterator[Row]:
    order = sorted(
        records,
        key=lambda r: (-r.robust_accuracy.value, -r.clean_accuracy.value, r.job.defense.name, r.job.seed),
    )
    ranks = _ranks([record for record in order if not record.health])
    for record in order:
        rank = ranks.get(id(record), NO_RANK)
        warnings = tuple((warning.code, current_wording(warning.text)) for warning in record.health)
        if not warnings and rank == NO_RANK:
            warnings = (("no-samples", "its samples.parquet cannot be read, so it cannot be compared"),)
        yield Row(rank, record, warnings, _claimed(record), lowest[id(record)], len(ranks))


def _ranks(records: list[Record]) -> dict[int, str]:
    """Ranks by the id of the record. Records without samples have none."""
    robust = {id(record): survives for record in records if (survives := held(record)) is not None}
    if not robust:
        return {}
    # float32 counts images exactly, and multiplies faster than integers.
    matrix = np.stack(list(robust.values())).astype(np.float32)
    # only[i, j]: number of images that i classifies correctly and j does not.
    only = (matrix @ (1 - matrix).T).astype(np.int32)
    wins, places = np.unique(only, return_inverse=True)
    most = np.array([_most_losses(int(count)) for count in wins], np.int32)
    better = most[places].reshape(only.shape) >= only.T
    return {key: str(1 + int(count)) for key, count in zip(robust, better.sum(0), strict=True)}


@cache
def _most_losses(wins: int) -> int:
    """The largest number of losses that is significantly smaller than `wins`; -1 if there is none."""
    return bisect_left(range(wins), SAME, key=partial(mcnemar, wins)) - 1


def _claimed(record: Record) -> float | None:
    """The lowest robust accuracy that the card's authors claim for the record's threat."""
    card = catalog.cards().get(record.job.defense.name)
    if card is None or card.dataset != specs.parse(record.job.dataset.name).name:
        return None
    threat = record.job.threat_model
    return min((c["robust"] for c in card.claims if Threat.parse(c["threat"]) == threat), default=None)


def _seeds(records: list[Record], subject: dict[int, int]) -> Iterator[str]:
    """The mean over several seeds of one run."""
    for group in grouped(records, lambda r: (subject[id(r)], r.job.defense.name)).values():
        if len({record.job.seed for record in group}) > 1:
            mean, deviation = mean_and_deviation([100 * record.robust_accuracy.value for record in group])
            job = group[0].job
            yield (
                f"{job.defense.name}, {job.suite.name}: robust {mean:.2f} ± {deviation:.2f} %, mean and standard "
                f"deviation of {len(group)} seeds"
            )


def shown_name(record: Record) -> str:
    """The defense, with the seed if it is not 0."""
    seed = f" (seed {record.job.seed})" if record.job.seed else ""
    return record.job.defense.name + seed


# A sort key for each of `robench.reports.table.SORTS`.
_ORDERS: dict[str, Callable[[Row], tuple]] = {
    "robust": lambda row: (-row.record.robust_accuracy.value,),
    "clean": lambda row: (-row.record.clean_accuracy.value,),
    "claimed": lambda row: (-(row.claimed if row.claimed is not None else -1.0),),
    "best-known": lambda row: (-row.best_known.value,),
    "defense": lambda row: (row.name,),
    "n": lambda row: (-row.record.job.n,),
}


def sort_rows(rows: Group, sort: str) -> Group:
    """The rows sorted by a column, one of `robench.reports.table.SORTS`, best first."""
    return tuple(sorted(rows, key=_ORDERS[sort]))

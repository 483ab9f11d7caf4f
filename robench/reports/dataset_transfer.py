"""Tables of purifiers with classifiers of other datasets, (trained on) x (tested on), from records alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robench import catalog
from robench.catalog import Rung
from robench.core import specs
from robench.defenses.resolution import family_card
from robench.records.randomized import unattacked
from robench.records.record import Record
from robench.reports.cells import lowest
from robench.reports.formatting import cell
from robench.reports.notes import Marked, warning_notes
from robench.reports.purifiers import Row, find_ladder, rows_of
from robench.reports.table import Grid
from robench.statistics.accuracy import Accuracy
from robench.threats.threat import Threat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN, UNDEFENDED = "clean", "undefended"
# Attacker knowledge in the order of tables and pictures; "full" has the exact gradients.
LEVELS = ("oblivious", "bpda", "full")


@dataclass(frozen=True)
class Target:
    """A column: the dataset, classifier and threat of the test."""

    dataset: str
    classifier: str
    threat: str
    n: int
    digest: str

    def __str__(self) -> str:
        return f"{self.short}, {self.classifier}, n = {self.n:,}"

    @property
    def short(self) -> str:
        return f"{specs.parse(self.dataset).name}, {Threat.parse(self.threat)}"


@dataclass(frozen=True)
class Source:
    """A row: the purifier, and how it handles images of another size.

    Attributes:
        label: the dataset, with other arguments of the purifier; a card's name if it is not the family's first for it.
        dataset: the dataset that the purifier was trained on; empty if unknown.
        purifier: its spec, in the first of its records.
    """

    label: str
    dataset: str
    purifier: str
    size_mode: str = ""

    def __str__(self) -> str:
        return f"{self.label}, {self.size_mode}" if self.size_mode else self.label


@dataclass(frozen=True)
class Matrix:
    """One family of purifiers.

    Attributes:
        cells: (source, target) -> level -> accuracy; the levels include "clean".
        bare: target -> level -> accuracy of the classifier alone.
        warned: every (source, target, level) whose record has a warning.
        warnings: one line per warning.
    """

    family: str
    sources: tuple[Source, ...]
    targets: tuple[Target, ...]
    cells: dict[tuple[Source, Target], dict[str, Accuracy]]
    bare: dict[Target, dict[str, Accuracy]]
    warned: frozenset[tuple[Source, Target, str]] = frozenset()
    warnings: tuple[str, ...] = ()


def matrices(records: Sequence[Record], ladder: str = "purifier-cheap", whole: bool = False) -> list[Matrix]:
    """A matrix for each family of purifiers that is used with classifiers of other datasets.

    The rows are the purifiers with such a record. The columns are these classifiers, and the classifiers of transfer
    protocols on the purifier's own dataset. A cell has the lowest accuracy of the ladder's rungs for each attacker
    knowledge; for a randomized purifier, the accuracy in the worst draw.

    Args:
        whole: include every row and column of the records, for every family.

    Raises:
        UsageError: when the ladder does not exist.
    """
    suite = find_ladder(ladder)
    ends = [end for protocol in catalog.protocols().values() for end in protocol.ends]
    home = {(str(specs.parse(end.dataset)), end.classifier) for end in ends}
    families: dict[str, list[tuple[Source, Target, Row]]] = {}
    for row in rows_of(records, suite):
        job = row.purified.job
        target = Target(job.dataset.name, job.defense.classifier, job.threat, job.n, job.dataset.digest)
        family, source = _source(row.purified)
        families.setdefault(family, []).append((source, target, row))
    result = []
    for family, rows in sorted(families.items()):
        abroad = [entry for entry in rows if entry[0].dataset != specs.parse(entry[1].dataset).name]
        cross, labels = {target for _, target, _ in abroad}, {source.label for source, _, _ in abroad}
        within = {
            target for _, target, _ in rows if (str(specs.parse(target.dataset)), target.classifier) in home
        }
        columns = cross and cross | within
        shown = [entry for entry in rows if whole or (entry[1] in columns and entry[0].label in labels)]
        if shown:
            result.append(_matrix(family, shown, {rung.name: rung for rung in suite.rungs}))
    return result


def _source(record: Record) -> tuple[str, Source]:
    """The family and the row of a record's purifier, from its card if known, else from its name."""
    facts = record.job.defense
    name = facts.name.removesuffix(f"+{facts.classifier}")
    spec = specs.renamed(specs.parse(name), {"size_mode"})
    card = catalog.cards().get(spec.name)
    if card is None:
        return facts.family or spec.name, Source(name, "", name)
    other = {key: value for key, value in spec.arguments.items() if key != "size_mode"}
    # A family may have several cards for a dataset; the others have rows of their own.
    first = family_card(card.family, specs.Spec(card.dataset, {}))
    shown = str(specs.Spec(card.dataset if card == first else card.name, other))
    mode = str(spec.arguments.get("size_mode", ""))
    return facts.family or card.name, Source(shown, card.dataset, name, mode)


def _matrix(family: str, rows: list[tuple[Source, Target, Row]], rungs: dict[str, Rung]) -> Matrix:
    cells: dict[tuple[Source, Target], dict[str, Accuracy]] = {}
    bare: dict[Target, dict[str, Accuracy]] = {}
    warned: set[tuple[Source, Target, str]] = set()
    marked: list[Marked] = []
    for source, target, row in rows:
        levels = cells.setdefault((source, target), {CLEAN: unattacked(row.purified)})
        for level, record in by_level(row, rungs).items():
            levels[level] = record.robust_accuracy
            if record.health:
                warned.add((source, target, level))
            marked.append((row.purified.job.defense.name, level, record.health))
        for name in (n for n, rung in rungs.items() if rung.subject == "classifier"):
            for record in row.records.get(name, []):
                bare[target] = {CLEAN: record.clean_accuracy, UNDEFENDED: record.robust_accuracy}
    sources = _filled(list(dict.fromkeys(source for source, _, _ in rows)), cells, warned)
    targets = tuple(dict.fromkeys(target for _, target, _ in rows))
    return Matrix(family, sources, targets, cells, bare, frozenset(warned), tuple(warning_notes(marked)))


def _filled(
    sources: list[Source],
    cells: dict[tuple[Source, Target], dict[str, Accuracy]],
    warned: set[tuple[Source, Target, str]],
) -> tuple[Source, ...]:
    """The rows. Results on images of the purifier's own size are repeated in the row of each size mode."""
    rows = []
    for source in sources:
        others = [other for other in sources if other.label == source.label and other.size_mode]
        if source.size_mode or not others:
            rows.append(source)
            continue
        for _, target in [key for key in cells if key[0] == source]:
            for other in others:
                cells[other, target] = cells[source, target]
                warned |= {(other, target, level) for s, t, level in warned if (s, t) == (source, target)}
    return tuple(sorted(rows, key=str))


def by_level(row: Row, rungs: Mapping[str, Rung]) -> dict[str, Record]:
    """The record of `row` with the lowest robust accuracy for each attacker knowledge that has a record."""
    records = {}
    for level in LEVELS:
        names = [name for name, rung in rungs.items() if (rung.subject, rung.knowledge) == ("defense", level)]
        if record := lowest(record for name in names for record in row.records.get(name, [])):
            records[level] = record
    return records


def grid(matrix: Matrix) -> Grid:
    """The matrix as a table: one group per source, one line per attacker knowledge, one column per target."""
    headings = [str(target) for target in matrix.targets]
    bare = [
        [matrix.bare.get(target, {}).get(level) for target in matrix.targets] for level in (CLEAN, UNDEFENDED)
    ]
    groups = [
        tuple(
            ("no purifier", level, *map(cell, accuracies))
            for level, accuracies in zip((CLEAN, UNDEFENDED), bare, strict=True)
        )
    ]
    for source in matrix.sources:
        lines = []
        for level in (CLEAN, *LEVELS):
            accuracies = (matrix.cells.get((source, target), {}).get(level) for target in matrix.targets)
            warned = ((source, target, level) in matrix.warned for target in matrix.targets)
            lines.append((str(source), level, *map(cell, accuracies, warned)))
        groups.append(tuple(lines))
    return Grid(
        title=f"{matrix.family} across datasets, no fine-tuning · accuracy in %, 95 % intervals",
        columns=("trained on", "attacker", *headings),
        groups=tuple(groups),
        names=frozenset(("trained on", "attacker")),
        numbers=frozenset(headings),
        notes=(
            "undefended: the classifier alone; full: exact gradients",
            "randomized purifiers: accuracy in the worst draw, also for clean images",
            *matrix.warnings,
        ),
    )


def transfer(records: Sequence[Record], ladder: str = "purifier-cheap") -> list[Grid]:
    """The tables of all families; see `matrices`."""
    return [grid(matrix) for matrix in matrices(records, ladder)]


def picture(matrix: Matrix) -> "Figure":
    """One heat map per attacker knowledge, side by side; "no purifier" is the classifier alone, attacked or not."""
    from robench.reports.plots.heatmaps import heat_maps

    rows, columns = ["no purifier", *map(str, matrix.sources)], [target.short for target in matrix.targets]
    panels: dict[str, dict[tuple[str, str], float]] = {}
    for level in (CLEAN, *LEVELS):
        panel = panels.setdefault(level if level == CLEAN else f"attacker: {level}", {})
        for target, levels in matrix.bare.items():
            panel["no purifier", target.short] = levels[CLEAN if level == CLEAN else UNDEFENDED].value
        for (source, target), levels in matrix.cells.items():
            if level in levels:
                panel[str(source), target.short] = levels[level].value
    title = f"Purifiers {matrix.family}: trained on one dataset, tested on others"
    return heat_maps(panels, rows, columns, title, "tested on", "trained on")

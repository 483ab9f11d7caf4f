"""The content of the pages, for the templates."""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from robench import catalog
from robench.catalog import Card
from robench.core import specs
from robench.core.errors import RobenchError
from robench.core.grouping import grouped
from robench.records import estimate
from robench.records.inputs import has_own_images, nameless
from robench.records.record import Job, Record
from robench.records.store import place_of, slug
from robench.reports import security_curve
from robench.reports.board import usual_columns
from robench.reports.cells import has_other_weights, on_images, on_protocol, run_command
from robench.reports.draws import draws_grids
from robench.reports.formatting import kinds, suite_label
from robench.reports.labels import short_names
from robench.reports.leaderboards import Leaderboard, Table, every_row
from robench.reports.page import chart
from robench.reports.page.chart import Chart
from robench.reports.ranking import Row
from robench.reports.table import Grid
from robench.statistics.accuracy import Accuracy, interval, percent
from robench.threats.knowledge import Knowledge

_ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")


@dataclass(frozen=True)
class Figure:
    """An accuracy and its interval in percent, as numbers and as text."""

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
        name: the name with the seed.
        short: the name without arguments, if it is unique in its table.
        anchor: the anchor of the record on the page of the defense.
        band: 0 or 1, alternating with the rank.
    """

    row: Row
    name: str
    short: str
    family: str
    architecture: str
    paper: str
    anchor: str
    band: int
    clean: Figure
    robust: Figure
    best_known: Figure
    page: str

    @property
    def record(self) -> Record:
        return self.row.record

    @property
    def suite(self) -> str:
        """The suite, with the attacker knowledge if it is not full and the seed if it is not 0."""
        label, _, seed = suite_label(self.record).partition("+seed")
        return label + (f" (seed {seed})" if seed else "")

    @property
    def has_other_weights(self) -> bool:
        """See `robench.reports.cells.has_other_weights`."""
        return has_other_weights(self.record)

    @property
    def order(self) -> int:
        """The rank as a number. Rows without a rank come last."""
        return int(self.row.rank) if self.row.rank.isdigit() else 10**6


@dataclass(frozen=True)
class TableView:
    """A table of a leaderboard; `columns` are the visible columns."""

    table: Table
    id: str
    columns: frozenset[str]
    known: str
    lines: tuple[Line, ...]

    @property
    def draws(self) -> list[Grid]:
        """The accuracies of randomized defenses over their draws; empty if there are none."""
        return draws_grids([(row.name, row.record) for row in self.table.rows])


@dataclass(frozen=True)
class Tab:
    """A leaderboard with its further tables."""

    id: str
    board: Leaderboard
    description: str
    main: TableView | None
    more: tuple[TableView, ...]
    chart: Chart | None

    @property
    def tables(self) -> tuple[TableView, ...]:
        return (*([self.main] if self.main else []), *self.more)


@dataclass(frozen=True)
class Page:
    """One defense: its card, if there is one, and its records.

    Attributes:
        lines: sorted, with AutoAttack first, then by number of images.
        curves: robust accuracy over the radius, one chart per norm with several radii.
        levels: pairs of an attacker knowledge and its lines, full knowledge first.
    """

    name: str
    file: str
    card: Card | None
    family: str
    architecture: str
    lines: tuple[Line, ...]
    curves: tuple[Chart, ...]
    levels: tuple[tuple[str, tuple[Line, ...]], ...]

    @property
    def draws(self) -> list[Grid]:
        """The accuracies of a randomized defense over its draws, a row for each record; empty for other defenses."""
        rows = [
            (f"{line.suite}, {line.record.job.threat}, {line.record.job.n:,}", line.record)
            for line in self.lines
        ]
        return draws_grids(rows, "suite, threat, n")


def tabs(boards: Sequence[Leaderboard]) -> tuple[list[Tab], list[Page]]:
    """The leaderboards as tabs of the first page, and a page for each defense, sorted by name."""
    files = _files(row.record.job.defense.name for _, _, row in every_row(boards))
    anchors: dict[str, int] = {}
    ids: dict[str, int] = {}
    result, lines = [], []
    for board in boards:
        # Rows that a series replaces are not in a table.
        lines += [_line(row, row.name, 0, anchors, files) for row in board.folded]
        if not board.tables and not board.series:
            continue
        name = slug(f"{board.dataset}-{board.threat}").lower()
        ids[name] = ids.get(name, 0) + 1
        name += f"-{ids[name]}" if ids[name] > 1 else ""
        views = [_table(table, f"{name}-{i}", anchors, files) for i, table in enumerate(board.tables)]
        lines += [line for view in views for line in view.lines]
        main, more = (views[0], views[1:]) if board.main else (None, views)
        description, plot = "", None
        if main:
            protocol = catalog.protocols().get(main.table.job.protocol)
            description = protocol.description if protocol else ""
            plot = chart.scatter(main.lines, f"Robust against clean accuracy, {main.table.title}")
        result.append(Tab(name, board, description, main, tuple(more), plot))
    by_defense = grouped(lines, lambda line: line.record.job.defense.name)
    return result, [_page(name, by_defense[name]) for name in sorted(by_defense)]


def known(knowledge: str) -> str:
    """A description of the attacker knowledge, which determines the meaning of a figure: every table spells it out."""
    return Knowledge.of(knowledge).description


def adaptive(knowledge: str) -> bool:
    """Whether the attack was adapted to the whole defense."""
    return Knowledge.of(knowledge).level.adaptive


def reproduce(record: Record) -> str:
    """The command that reproduces the record under `results`; empty where none does, for submitted images and for a
    model or images without a name."""
    job = record.job
    if nameless(record) or has_own_images(record) or specs.parse(job.suite.attacks[0]).name == "submitted":
        return ""
    name = job.suite.name.removesuffix(estimate.SUFFIX)
    suite = catalog.suites().get(name)
    attack = name if suite and not suite.rungs else "+".join(job.suite.attacks)
    more = ["--estimate", f"{job.half_width:g}"] if job.half_width else []
    more += ["--certify-first", proven["by"]] if (proven := record.extra.get("proven")) else []
    more += ["--seed", str(job.seed)] if job.seed else []
    more += ["--precision", job.precision, "--batch-size", str(job.batch_size)]
    return run_command(job.defense.name, attack, _images(job), job.knowledge, more)


def _images(job: Job) -> list[str]:
    """The arguments for the images and the threat of a record."""
    protocol = catalog.protocols().get(job.protocol)
    run = (job.dataset.name, job.threat_model, job.n)
    same = protocol and (str(protocol.dataset), protocol.threat, protocol.samples) == run
    return on_protocol(job.protocol) if same else on_images(job)


def submission(record: Record) -> str:
    """The command that runs a defense of one's own like a record."""
    job = record.job
    return run_command("python:my_module.build", job.suite.name, _images(job), job.knowledge)


def verify(record: Record) -> str:
    """The command that verifies the record that `reproduce` creates, or the record itself."""
    named = ["--defense", "python:MODULE.FUNCTION"] if nameless(record) else []
    return shlex.join(["robench", "verify", place_of("results", record.job).as_posix(), *named])


def citation(version: str) -> str:
    """BibTeX of robench."""
    return (
        "@software{robench,\n  title = {robench: robustness evaluation of image classification defenses},\n"
        f"  author = {{The robench authors}},\n  version = {{{version}}}\n}}"
    )


def papers(text: str) -> list[str]:
    """The arXiv numbers in a text."""
    return _ARXIV.findall(text)


def _table(table: Table, id: str, anchors: dict[str, int], files: dict[str, str]) -> TableView:
    lines, band, previous = [], 1, ""
    for row, name in zip(table.rows, short_names([row.name for row in table.rows]), strict=True):
        band, previous = (band if row.rank == previous else 1 - band), row.rank
        lines.append(_line(row, name.replace("+", " + "), band, anchors, files))
    return TableView(table, id, frozenset(usual_columns(table)), known(table.job.knowledge), tuple(lines))


def _line(row: Row, short: str, band: int, anchors: dict[str, int], files: dict[str, str]) -> Line:
    record = row.record
    anchor = f"record-{slug(record.key[:12])}"
    anchors[anchor] = anchors.get(anchor, 0) + 1
    if anchors[anchor] > 1:
        anchor += f"-{anchors[anchor]}"
    family, architecture = kinds(record)
    card = catalog.cards().get(record.job.defense.name)
    return Line(
        row,
        row.name,
        short,
        family,
        architecture,
        card.paper if card else "",
        anchor,
        band,
        Figure.of(record.clean_accuracy),
        Figure.of(record.robust_accuracy),
        Figure.of(row.best_known),
        files[record.job.defense.name],
    )


def _files(names: Iterable[str]) -> dict[str, str]:
    """A file name for each defense, also different on file systems that ignore case."""
    taken: dict[str, int] = {}
    files = {}
    for name in sorted(set(names)):
        stem = slug(name)
        count = taken[stem.lower()] = taken.get(stem.lower(), 0) + 1
        # A slug has no tilde, so the numbered name is unique.
        files[name] = f"{stem}~{count}.html" if count > 1 else f"{stem}.html"
    return files


def _page(name: str, lines: list[Line]) -> Page:
    ordered = sorted(lines, key=lambda line: not adaptive(line.record.job.knowledge))
    levels = grouped(ordered, lambda line: line.record.job.knowledge)
    return Page(
        name,
        lines[0].page,
        catalog.cards().get(name),
        lines[0].family,
        lines[0].architecture,
        tuple(sorted(lines, key=_order)),
        tuple(_curves(name, lines)),
        tuple((knowledge, tuple(entries)) for knowledge, entries in levels.items()),
    )


def _order(line: Line) -> tuple:
    job = line.record.job
    return job.suite.name != "autoattack", job.knowledge != "full", -job.n, job.dataset.name, job.threat


def _curves(name: str, lines: list[Line]) -> Iterator[Chart]:
    """A chart for each dataset and norm with records at two radii or more."""
    places: dict[tuple, dict[tuple, list[Record]]] = {}
    for line in sorted(lines, key=_order):
        job = line.record.job
        if line.record.is_estimate:
            continue  # An estimate says nothing of the images that it did not attack.
        weights = (job.defense.checkpoint_sha256, job.defense.state_sha256)
        place = (job.dataset.name, job.threat_model.kind, job.n, job.dataset.digest, job.seed, *weights)
        places.setdefault(place, {}).setdefault((job.suite.name, job.knowledge), []).append(line.record)
    for (dataset, kind, n, *_), series in places.items():
        curves = []
        for records in series.values():
            radii = {record.job.threat_model.eps: record.job.threat_model.text for record in records}
            if len(radii) > 1:
                # A record whose samples cannot be read has no curve.
                with suppress(RobenchError, AssertionError):
                    curves += security_curve.curves(["0", *(radii[eps] for eps in sorted(radii))], records)
        title = f"Security curve of {name}: {dataset}, {kind}, {n:,} images"
        if plot := chart.curves(curves, title, f"{kind} radius"):
            yield plot

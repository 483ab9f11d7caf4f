"""The summary of a run on a terminal: accuracies, attacks, cost and warnings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robench.core.formatting import count, duration, location
from robench.core.sanitize import plain
from robench.records.cross_checks import own_warnings
from robench.records.randomized import FIELD, draws_label
from robench.records.record import Record
from robench.reports import corruption
from robench.reports.draws import STATISTICS
from robench.reports.formatting import suite_label
from robench.statistics.accuracy import Accuracy, interval, percent


def run_table(records: Sequence[Record]) -> RenderableType:
    """One row per record, and attacks, cost and warnings below.

    Fits 80 columns. Text from cards and records is never interpreted as markup.
    """
    attacked = [record for record in records if not record.corrupted]
    parts: list[RenderableType] = [_figures(attacked)] if attacked else []
    for record in records:
        if record.corrupted:
            parts += [Text(), corruption.report(record)] if parts else [corruption.report(record)]
    for record in attacked:
        parts += [Text(), *_details(record, named=len(records) > 1)]
    return Group(*parts)


def _figures(records: Sequence[Record]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for name in ("defense", "suite", "threat"):
        grid.add_column(name, overflow="fold")
    grid.add_column("n", justify="right", no_wrap=True)
    for name in ("clean %", "robust %"):
        grid.add_column(name, justify="right", min_width=12)
    for record in records:
        job = record.job
        warning = Text(" !", style="bold yellow") if record.health else Text()
        grid.add_row(
            Text(plain(job.defense.name), style="bold") + warning,
            Text(plain(suite_label(record)).replace("@", "\n@")),
            Text(job.threat),
            f"{job.n:,}",
            _accuracy(record.clean_accuracy),
            _accuracy(record.robust_accuracy, "bold green" if not record.health else "bold yellow"),
        )
    return grid


def _accuracy(accuracy: Accuracy, style: str = "bold") -> Text:
    return Text.assemble((percent(accuracy), style), "\n", (interval(accuracy), "dim"))


def _details(record: Record, named: bool) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if named:
        name = f"{record.job.defense.name} under {suite_label(record)}, {record.job.threat}"
        parts.append(Text(plain(name), style="bold"))
    parts += [attacks(record), Text()]
    if FIELD in record.extra:
        parts += [over_draws(record), Text()]
    if proven := record.extra.get("proven"):
        parts.append(Text(plain(proven_images(proven))))
    return [*parts, Text(cost(record), style="dim"), *corruption.warning_lines(record)]


def attacks(record: Record) -> Table:
    """The result of each attack of the suite, in order."""
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    grid.add_column("attack", overflow="fold", ratio=1)
    for name in ("attacked", "survive", "forward", "backward", "time"):
        grid.add_column(name, justify="right", no_wrap=True)
    for cost in record.attacks:
        # Only the name is emphasized; parameters are dimmed.
        name, bracket, rest = plain(cost.spec).partition("(")
        grid.add_row(
            Text.assemble(name, (bracket + rest, "dim")),
            f"{cost.attacked:,}",
            f"{cost.survivors:,}",
            count(cost.forward),
            count(cost.backward),
            duration(cost.seconds),
        )
    return grid


def over_draws(record: Record) -> Table:
    """Accuracies of a randomized defense over its draws, one row each."""
    figures = record.extra[FIELD]
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    grid.add_column(draws_label(record), no_wrap=True)
    for name in ("clean %", "robust %"):
        grid.add_column(name, justify="right", no_wrap=True)
    for name in STATISTICS:
        if name in figures["robust"]:
            grid.add_row(
                name.replace("_", " "), *(_share(figures[images][name]) for images in ("clean", "robust"))
            )
    return grid


def _share(share: Mapping[str, Any]) -> Text:
    low, high = (100 * end for end in share["interval"])
    return Text.assemble((f"{100 * share['value']:.2f}", "bold"), (f" [{low:.1f}, {high:.1f}]", "dim"))


def proven_images(proven: Mapping[str, Any]) -> str:
    """How many images a certifier proved: "57 images proven by crown and not attacked, which saved 600,000 passes"."""
    saved = sum(proven.get("saved", {}).values())
    images = (
        f"{proven['images']:,} image{'s' * (proven['images'] != 1)} proven by {proven['by']} and not attacked"
    )
    return images + (f", which saved {count(saved)} passes" if saved else "")


def cost(record: Record) -> str:
    """The cost of a run: "1,234 forward and 567 backward passes per image, 42 images/s, 12.3 s on cpu"."""
    n, passes = record.job.n, record.passes
    speed = f"{count(n / record.seconds)} images/s, " if record.seconds >= 1 else ""
    device = plain(record.device).partition(":")[0]
    forward, backward = (count(passes[direction] / n) for direction in ("forward", "backward"))
    time = f"{speed}{duration(record.seconds)} on {device}"
    return f"{forward} forward and {backward} backward passes per image, {time}"


def describe(record: Record) -> RenderableType:
    """The full content of a record, for `robench show`."""
    record = replace(record, health=(*record.health, *own_warnings(record)))
    return Group(run_table([record]), Text(), provenance(record))


def provenance(record: Record) -> Table:
    """How the figures were obtained, one fact per line."""
    job, git = record.job, record.git
    commit = "" if git is None else f", commit {git['commit'][:10]}{' with changes' if git['dirty'] else ''}"
    libraries = ", ".join(
        f"{name} {release}" for name, release in record.platform.items() if name != "system"
    )
    facts = (
        ("record", location(record.folder)),
        ("command", record.command),
        ("protocol", job.protocol),
        ("data", f"{job.dataset.name} {job.dataset.split}, digest {job.dataset.digest[:12]}"),
        ("checkpoint", job.defense.checkpoint_sha256[:12] or "none"),
        ("parameters", "" if job.defense.parameters is None else f"{job.defense.parameters:,}"),
        ("knowledge", job.knowledge),
        ("seed", str(job.seed)),
        ("arithmetic", f"{job.precision}, batch size {job.batch_size}"),
        ("device", record.device),
        ("system", record.platform["system"]),
        ("libraries", libraries),
        ("robench", record.robench_version + commit),
        ("started", record.started),
        ("finished", record.finished),
        ("key", record.key[:12]),
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        if value:
            grid.add_row(name, Text(plain(value)))
    return grid

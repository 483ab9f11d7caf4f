"""Runs under corruptions, on a terminal and in tables separate from attacks."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from robench.core.formatting import count, duration
from robench.core.grouping import grouped
from robench.core.sanitize import plain
from robench.corruption.names import COMMON, SEVERITIES
from robench.records.record import Record
from robench.reports.formatting import EMPTY, figure, suite_label
from robench.reports.notes import current_wording
from robench.reports.table import Grid
from robench.statistics.accuracy import interval, percent
from robench.statistics.corruption import PLAIN

COLUMNS = ("defense", "clean %", "common %", "mCE %", "relative mCE %", "extra %", "suite", "n", "warnings")


def headline(record: Record) -> list[str]:
    """The lines above a picture."""
    job, extra = record.job, record.extra
    means = [f"clean {percent(record.clean_accuracy)} %"]
    if "common" in extra.get("corrupted_accuracy", {}):
        means.append(f"common corruptions {_share(extra['corrupted_accuracy']['common'])} %")
    lines = [
        f"accuracy in %, {job.n:,} images of {plain(job.dataset.name)}, {images_made(record)}",
        ", ".join(means),
    ]
    if "mce" in extra:
        normaliser = extra["mce"]["normaliser"]
        errors = "plain errors" if normaliser == PLAIN else f"over the errors of {normaliser}"
        lines.append(f"mCE {_share(extra['mce'])} %, relative {_share(extra['relative_mce'])} %, {errors}")
    return lines


def images_made(record: Record) -> str:
    """How the corrupted images were made."""
    corruptions = record.extra["corruptions"]
    jpeg, factor = corruptions["jpeg"], corruptions["enlarged"]
    source = f"through JPEG (quality {jpeg['quality']})" if jpeg else "in memory (no JPEG)"
    return source + (f", enlarged {factor} times before corruption" if factor > 1 else "")


def divided(record: Record) -> str:
    """The errors that the mCE is divided by."""
    name = record.extra["mce"]["normaliser"]
    unnormalised = "plain mean errors (AlexNet's errors are known only for ImageNet at 224 px)"
    return unnormalised if name == PLAIN else f"divided by the errors of {name}"


def report(record: Record) -> RenderableType:
    """The figures, then the accuracy for each corruption and severity, in 80 columns."""
    job, extra = record.job, record.extra
    parts: list[RenderableType] = [
        Text.assemble((plain(job.defense.name), "bold"), f" under {plain(suite_label(record))}"),
        Text(f"{job.n:,} images of {plain(job.dataset.name)}, {images_made(record)}", style="dim"),
        Text(),
        _figures(record),
        Text(),
        _cells(record),
        Text(),
    ]
    if "mce" in extra:
        parts.append(Text(f"mCE and relative mCE: {divided(record)}", style="dim"))
    speed = f"{count(record.passes['forward'] / record.seconds)} images/s, " if record.seconds >= 1 else ""
    cost = f"{count(record.passes['forward'])} images classified, {speed}{duration(record.seconds)}"
    return Group(*parts, Text(cost, style="dim"), *warning_lines(record))


def warning_lines(record: Record) -> list[Text]:
    """One line for a terminal per warning."""
    return [
        Text.assemble(
            ("! ", "bold yellow"), (plain(warning.code), "yellow"), ": ", current_wording(warning.text)
        )
        for warning in record.health
    ]


def _figures(record: Record) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    shown = {"clean %": f"{percent(record.clean_accuracy)}\n{interval(record.clean_accuracy)}"}
    means = record.extra.get("corrupted_accuracy", {})
    for name, shares, field in (
        ("common %", means, "common"),
        ("extra %", means, "validation"),
        ("mCE %", record.extra, "mce"),
        ("relative mCE %", record.extra, "relative_mce"),
    ):
        if field in shares:
            shown[name] = _share(shares[field], "\n")
    for name in shown:
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_row(*shown.values())
    return grid


def _cells(record: Record) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    grid.add_column("accuracy in %")
    for severity in SEVERITIES:
        grid.add_column(str(severity), justify="right", min_width=5)
    grid.add_column("mean", justify="right", min_width=5)
    accuracies = record.extra["corruptions"]["accuracy"]
    names = list(accuracies)
    for name in names:
        values = [accuracies[name].get(str(k)) for k in SEVERITIES]
        present = [share["value"] for share in values if share]
        last_common = name in COMMON and names[-1] != name and names[names.index(name) + 1] not in COMMON
        grid.add_row(
            name,
            *(f"{100 * share['value']:.1f}" if share else EMPTY for share in values),
            Text(f"{100 * sum(present) / len(present):.1f}", style="bold"),
            end_section=last_common,
        )
    return grid


def grids(records: Sequence[Record]) -> Iterator[Grid]:
    """One table per protocol of the records under corruptions, sorted by mCE. They have no ranks."""
    tables = grouped((r for r in records if r.corrupted), lambda record: record.job.protocol)
    for protocol in sorted(tables):
        groups = grouped(
            tables[protocol], lambda r: (r.job.suite.name, r.job.suite.attacks, r.job.dataset.digest)
        )
        notes: list[str] = []
        ordered = (sorted(groups[key], key=_order) for key in sorted(groups))
        rows = tuple(tuple(_line(record, notes) for record in group) for group in ordered)
        descriptions = dict.fromkeys(
            f"{record.job.suite.name}: images {images_made(record)}"
            + (f"; mCE {divided(record)}" if "mce" in record.extra else "")
            for record in tables[protocol]
        )
        yield Grid(
            title=f"{protocol} · common corruptions, 95 % intervals",
            columns=COLUMNS,
            groups=rows,
            names=frozenset(("defense", "suite")),
            numbers=frozenset(("clean %", "common %", "mCE %", "relative mCE %", "extra %", "n")),
            notes=(*descriptions, *notes),
        )


def _line(record: Record, notes: list[str]) -> tuple[str, ...]:
    job, extra = record.job, record.extra
    means = extra.get("corrupted_accuracy", {})
    warnings = []
    for warning in record.health:
        notes.append(f"({len(notes) + 1}) {job.defense.name}: {warning}")
        warnings.append(f"({len(notes)})")
    seed = f" (seed {job.seed})" if job.seed else ""
    return (
        job.defense.name + seed,
        figure(record.clean_accuracy),
        *(_share(shares[name]) if name in shares else EMPTY
          for shares, name in ((means, "common"), (extra, "mce"), (extra, "relative_mce"), (means, "validation"))),
        job.suite.name,
        f"{job.n:,}",
        " ".join(warnings),
    )  # fmt: skip


def _order(record: Record) -> tuple:
    error = record.extra.get("mce", {}).get("value", float("inf"))
    return (error, -record.robust_accuracy.value, record.job.defense.name, record.job.seed)


def _share(share: dict[str, Any], separator: str = " ") -> str:
    low, high = share["interval"]
    return f"{100 * share['value']:.2f}{separator}[{100 * low:.1f}, {100 * high:.1f}]"

"""robench run: attack defenses and write records."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from robench.catalog import find_protocol
from robench.cli import common
from robench.cli.completion import names_of
from robench.cli.running import GroupedCommand, Running, Selection, collect, running, selecting
from robench.core.errors import UsageError
from robench.evaluation.protocol import find_suites, sets_threats
from robench.reports.table import render

if TYPE_CHECKING:
    from robench.records.record import Record


def share_of(text: str) -> tuple[int, int]:
    """A share "3/16" as number, from 0, and count."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f'--share "{text}": expected I/K with I from 1 to K, such as 3/16')
    return int(number) - 1, int(count)


@click.command("run", cls=GroupedCommand)
@selecting()
# Commands of their own by now: robench sweep, curve and transfer.
@click.option("--from", "sources", multiple=True, callback=common.names, hidden=True)
@click.option("--to", "targets", multiple=True, callback=common.names, hidden=True)
@click.option("--finetune", hidden=True)
@click.option("--sweep", "swept", hidden=True)
@click.option("--curve", "radii", hidden=True)
@click.option(
    "--estimate",
    metavar="POINTS",
    type=float,
    help="Estimate robust accuracy to +-POINTS on a sample.",
)
@click.option(
    "--certify-first",
    metavar="SPEC",
    shell_complete=names_of("certifier"),
    help="Skip images that a certifier (crown) proves robust.",
)
@click.option("--share", metavar="I/K", help="Run one of K shares of the images (docs/cluster.md).")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="Where attacks run.")
@click.option("--address", metavar="ADDR", help="Address of a Ray cluster, HEAD:PORT.")
@click.option("--gpus-per-worker", metavar="N", type=click.FloatRange(min=0), help="GPUs of each Ray worker.")
@running()
def command(
    selection: Selection,
    running: Running,
    sources: list[str],
    targets: list[str],
    finetune: str | None,
    swept: str | None,
    radii: str | None,
    estimate: float | None,
    certify_first: str | None,
    share: str | None,
    engine: str,
    address: str | None,
    gpus_per_worker: float | None,
) -> Callable[[], None] | None:
    """Attack defenses and save records. A repeated command resumes, or shows the saved records.

    \b
    robench run --defense mimir --attack autoattack
    robench run --defense mimir,pgd-at --attack quick --threat Linf:0.05

    Defaults: the suites of the protocol digits-linf, with full attacker knowledge.
    See also robench sweep, curve, transfer. Terms: docs/glossary.md
    """
    protocol, part = selection.protocol, share_of(share) if share is not None else None
    if part and engine != "local":
        raise UsageError("--share runs one share here, and --engine ray runs all: give one of them")
    if engine == "local" and (address is not None or gpus_per_worker is not None):
        raise UsageError("--address and --gpus-per-worker need --engine ray")
    transfers = bool(sources or targets or finetune or (protocol and find_protocol(protocol).ends))
    if (part or estimate is not None or engine != "local") and (transfers or swept or radii):
        raise UsageError(
            "--share, --estimate and --engine cannot be combined with transfers, --sweep and --curve"
        )
    if part and estimate is not None:
        raise UsageError("--estimate attacks a sample, and --share a part of all images: give one of them")
    if certify_first is not None:
        if transfers or swept or radii or estimate is not None:
            raise UsageError(
                "--certify-first cannot be combined with transfers, --sweep, --curve and --estimate"
            )
        from robench.evaluation.certify_first import check_method

        certify_first, _ = check_method(certify_first)
    if transfers:
        if selection.dataset or selection.knowledge or swept or radii or running.options.checkpoint:
            raise UsageError(
                "a transfer protocol cannot be combined with --dataset, --knowledge, --sweep, --curve and --checkpoint"
            )
        from robench.cli.transfer import transfer

        return transfer(selection, sources, targets, finetune, running)
    if radii is not None:
        if swept is not None:
            raise UsageError("--curve is a sweep over the radius: give --curve or --sweep, not both")
        from robench.cli.curve import curve

        return curve(radii, selection, running)
    if swept is not None:
        from robench.cli.sweep import sweep

        return sweep(swept, selection, running)
    suites = find_suites(selection.attacks)
    chosen = selection.chosen()
    from robench.evaluation.run import run_all

    cluster = {"engine": engine, "address": address, "gpus_per_worker": gpus_per_worker}
    options = replace(running.options, share=part, estimate=estimate, certify_first=certify_first, **cluster)
    records, failure = collect(
        run_all(selection.defenses, suites or None, chosen, selection.knowledge or None, options)
    )

    def show() -> None:
        if running.as_json:
            running.print_json(records)
        elif records:
            _show(records, list(dict.fromkeys(selection.attacks or chosen.suites)))
        if failure:
            raise failure

    return show


def _show(records: "list[Record]", suites: list[str]) -> None:
    from robench.records.remote import shown
    from robench.reports.plots import corruption_heatmap
    from robench.reports.run_summary import run_table
    from robench.reports.unforeseen import unforeseen

    console = common.console()
    console.print(run_table(records))
    for suite in find_suites(suites):
        # A ladder of threats is summarized by their mean.
        if sets_threats(suite):
            for table in unforeseen(records, suite):
                sys.stdout.write("\n" + render(table, "text", console.width))
    for record in records:
        if record.corrupted and record.folder:
            picture = corruption_heatmap.write(record, record.folder / corruption_heatmap.FILE)
            common.say(f"plot: {shown(picture)}")
        common.say(f"record: {shown(record.folder or '')}")

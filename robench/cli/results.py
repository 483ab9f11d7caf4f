"""robench results: records merged from several machines, exported with their certificates, migrated and pruned."""

import click
from rich.console import Console
from rich.text import Text

from robench.cli import common
from robench.cli.common import names
from robench.core.sanitize import plain
from robench.evaluation.options import default_results

_UNITS = ("B", "kB", "MB", "GB")


@click.group("results")
def command() -> None:
    """Merge, export, migrate and prune records."""


@command.command("merge")
@click.argument("sources", nargs=-1, required=True)
@click.option("--into", help="Folder of all records.  [default: results]")
def merge_command(sources: tuple[str, ...], into: str | None) -> None:
    """Bring the records of SOURCES (folders, or archives of robench results export) into one folder.

    Each goes to the place that its content says. Of two for one place the later stands, the other is kept under
    superseded/, and the conflict is named. Damaged ones are named and left out.
    """
    from robench.core.errors import CheckFailed
    from robench.core.formatting import location
    from robench.core.sanitize import plain
    from robench.records.archive import merge

    console = Console()
    done = []
    for each in merge(sources, into or default_results()):
        done.append(each)
        if each.what == "damaged":
            console.print(Text(f"damaged  {plain(each.source)}: {plain(each.detail)}"), soft_wrap=True)
        elif each.what != "same":
            told = {"newer": " (what stood there is superseded)", "older": " (kept as superseded)"}.get(
                each.what, ""
            )
            detail = f": {plain(each.detail)}" if each.detail else ""
            console.print(Text(f"{each.what:<7}  {location(each.place)}{told}{detail}"), soft_wrap=True)
    counts = {
        what: sum(each.what == what for each in done) for what in ("new", "newer", "older", "same", "damaged")
    }
    console.print(
        Text(", ".join(f"{count} {what}" for what, count in counts.items() if count) or "no records")
    )
    if counts["damaged"]:
        raise CheckFailed(f"{counts['damaged']} of {len(done)} records are damaged and were left out")


@command.command("export")
@click.argument("sources", nargs=-1, required=True)
@click.option("--output", required=True, help="A new folder, or an archive that ends in .zip.")
@click.option(
    "--model-info", is_flag=True, help="Files as RobustBench's model_info has them, in place of records."
)
def export_command(sources: tuple[str, ...], output: str, model_info: bool) -> None:
    """Write the records of SOURCES (records, or folders of them) with their certificates, to be checked elsewhere.

    With --model-info a JSON file a record for RobustBench: what a record does not know is null there, to be filled in.

    \b
    robench results export results/digits-linf --output mine.zip
    robench results merge mine.zip              # on another machine
    """
    from robench.records.archive import export

    console = Console()
    if model_info:
        from robench.core.formatting import location
        from robench.records.collection import collect
        from robench.reports.robustbench import write_infos

        found = collect(sources)
        for made in write_infos(found, output):
            console.print(Text(location(made)), soft_wrap=True)
        common.report(found.left_out, len(found))
        return
    places, left_out = export(sources, output)
    for place in places:
        console.print(Text(place), soft_wrap=True)
    console.print(Text(f"{len(places)} records: {output}"), soft_wrap=True)
    common.report(left_out, len(places))


@command.command("migrate")
@click.argument("results", nargs=-1)
@common.data_dir
@common.device
@common.trust
@click.option("--dry-run", is_flag=True, help="Name the records that are due, and change nothing.")
def migrate_command(results: tuple[str, ...], data_dir: str | None, device: str, dry_run: bool) -> None:
    """Judge the certificates of old records again, by forward passes alone.

    Due are records of randomised defenses that were judged on the draws their candidates were chosen on, and records
    with certificates that exceed the radius by more than a millionth of it. Others are left as they are; of each
    record that changes the old one is kept under superseded/.
    """
    from robench.core.errors import ResourceError, RobenchError
    from robench.core.formatting import location
    from robench.data import load_dataset
    from robench.defenses import load
    from robench.engine.device import choose_device
    from robench.records.collection import collect
    from robench.records.migration import migrate, overdue
    from robench.statistics.accuracy import percent

    where, console = choose_device(device), Console()
    found = collect(results or (str(default_results()),))
    failed = list(map(str, found.left_out))
    due = 0
    for record in found:
        job, place = record.job, location(record.folder)
        try:
            images = load_dataset(job.dataset.name, job.dataset.split, job.n, data_dir)
            reasons = overdue(record, images)
            if not reasons:
                continue
            done = ""
            if not dry_run:
                loaded = load(job.defense.name, job.dataset.name, None, where, images.class_subset)
                after = migrate(record.folder or place, loaded, images, where)
                change = f"{percent(record.robust_accuracy)} to {percent(after.robust_accuracy)}"
                done = f"; robust % {change}"
        except RobenchError as error:
            failed.append(f"{place}: {error}")
            continue
        due += 1
        console.print(Text(plain(f"{place}: {'; '.join(reasons)}{done}")), soft_wrap=True)
    for line in failed:
        console.print(Text(plain(f"left as it is: {line}")), soft_wrap=True)
    verb = "due" if dry_run else "migrated"
    console.print(Text(f"{due} of {len(found)} records {verb}"))
    if failed:
        raise ResourceError(
            f"{len(failed)} records could not be looked at or migrated and were left as they are"
        )


@command.command("prune")
@click.argument("results", nargs=-1)
@click.option(
    "--only", multiple=True, callback=names, help="Of partial, superseded, temporary.  [default: all three]"
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
def prune_command(results: tuple[str, ...], only: list[str], dry_run: bool) -> None:
    """Remove interrupted runs, superseded records and what a kill left behind from the RESULTS folders.

    What a run is writing at this moment stays.
    """
    from robench.core.errors import ResourceError
    from robench.core.formatting import location, one_of
    from robench.records.prune import KINDS, prune, waste
    from robench.records.reading import LeftOut

    for kind in only:
        one_of("kind", kind, KINDS)
    console = Console()
    total = count = 0
    left_out = []
    for root in results or (str(default_results()),):
        for each in list(waste(root, only or KINDS)):
            if not dry_run:
                try:
                    prune([each])
                except ResourceError as error:
                    left_out.append(LeftOut.of(each.path, error))
                    continue
            total, count = total + each.size, count + 1
            console.print(
                Text(f"{each.kind:<10}  {_bytes(each.size):>8}  {location(each.path)}"), soft_wrap=True
            )
    verb = "would be removed" if dry_run else "removed"
    console.print(Text(f"{count} {verb}, {_bytes(total)}" if count else "nothing to remove"))
    common.report(left_out, count, "could not be removed")


def _bytes(size: float) -> str:
    unit = 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 else f"{size:.3g} {_UNITS[unit]}"

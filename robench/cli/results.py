"""robench results: merge, export, migrate and prune records."""

from collections import Counter

import click

from robench.cli import common
from robench.cli.common import names
from robench.evaluation.options import default_results


@click.group("results", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Merge, export, migrate and prune records."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command("merge", short_help="Merge records of several machines into one folder.")
@click.argument("sources", nargs=-1, type=common.Place(), required=True)
@click.option("--into", type=common.Place(), help="Folder of all records.  [default: results]")
def merge_command(sources: tuple[str, ...], into: str | None) -> None:
    """Merge the records of SOURCES (folders, or archives from robench results export) into one folder.

    The folder of a record follows from its content. If two records have the same folder, the more recently finished
    one is kept, the other moves to superseded/, and the conflict is reported. Damaged records are reported and left
    out. Shares of unfinished runs (robench run --share) are copied as well.
    """
    from robench.core.errors import CheckFailed
    from robench.core.formatting import location
    from robench.records.archive import merge

    outcomes: Counter[str] = Counter()
    notes = {"newer": " (the old record is superseded)", "older": " (kept as superseded)"}
    for merged in merge(sources, into or common.local(default_results())):
        outcomes[merged.what] += 1
        if merged.what == "damaged":
            common.say(f"damaged  {merged.source}: {merged.detail}")
        elif merged.what != "same":
            detail = f": {merged.detail}" if merged.detail else ""
            common.say(f"{merged.what:<7}  {location(merged.place)}{notes.get(merged.what, '')}{detail}")
    kinds = ("new", "newer", "older", "same", "share", "damaged")
    common.say(", ".join(f"{outcomes[kind]} {kind}" for kind in kinds if outcomes[kind]) or "no records")
    if outcomes["damaged"]:
        total = outcomes.total()
        raise CheckFailed(f"{outcomes['damaged']} of {total} records are damaged and were left out")


@command.command("export", short_help="Export records with their adversarial examples.")
@click.argument("sources", nargs=-1, type=common.Place(), required=True)
@click.option("--output", required=True, help="A new folder, or an archive that ends in .zip.")
@click.option(
    "--model-info", is_flag=True, help="Write files in RobustBench's model_info format instead of records."
)
@click.option(
    "--images",
    is_flag=True,
    help="Write the adversarial images of one record to a .pt, .npz or .safetensors file (adv_complete).",
)
@common.data_dir
@common.trust
def export_command(
    sources: tuple[str, ...], output: str, model_info: bool, images: bool, data_dir: str | None
) -> None:
    """Export the records of SOURCES (records, or folders of them) with their adversarial examples.

    --model-info writes one JSON file per record for RobustBench; fields that a record lacks are null. --images writes
    the adversarial images of one record in the format of AutoAttack: all images in the order of the record, clean where
    no attack succeeded.

    \b
    robench results export results/digits-linf --output mine.zip
    robench results merge mine.zip              # on another machine
    robench results export results/digits-linf/mimir-digits/autoattack --images --output adversarial.pt
    """
    from robench.core.errors import UsageError
    from robench.records.archive import export

    if images:
        _export_images(sources, output, model_info, data_dir)
        return
    if data_dir is not None:
        raise UsageError("--data-dir finds the images of --images: add --images, or leave it out")
    if model_info:
        from robench.core.formatting import location
        from robench.records.collection import collect
        from robench.reports.robustbench import write_infos

        records = collect(sources)
        for file in write_infos(records, output):
            common.say(location(file))
        common.report(records.left_out, len(records))
        return
    places, left_out = export(sources, output)
    for line in (*places, f"{len(places)} records: {output}"):
        common.say(line)
    common.report(left_out, len(places))


def _export_images(sources: tuple[str, ...], output: str, model_info: bool, data_dir: str | None) -> None:
    """Write the adversarial images of one record to a file."""
    from robench.core.errors import UsageError
    from robench.core.formatting import location
    from robench.records.inputs import images_of
    from robench.records.record import read_record
    from robench.records.submission import images_with, write_images

    if len(sources) != 1 or model_info:
        raise UsageError("--images writes one record's images: give one record, without --model-info")
    record = read_record(sources[0])
    if record.corrupted:
        raise UsageError(f"{sources[0]} is a run under corruptions, which has no adversarial images")
    images = images_of(record, data_dir)
    write_images(output, images_with(record, images), images.ids)
    common.say(f"{len(images)} images: {location(output)}")


@command.command("migrate", short_help="Judge old records again.")
@click.argument("results", nargs=-1, type=common.Place())
@common.data_dir
@common.device
@common.trust
@click.option("--dry-run", is_flag=True, help="Print which records would change, and change nothing.")
def migrate_command(results: tuple[str, ...], data_dir: str | None, device: str, dry_run: bool) -> None:
    """Judge the adversarial examples of old records again, by forward passes alone.

    This affects records of randomized defenses that were judged on the draws on which their candidates were chosen,
    and records with adversarial examples that exceed the radius by more than a millionth of it. Other records are left
    as they are. The old version of a changed record is kept under superseded/.
    """
    from robench.core.errors import ResourceError, RobenchError
    from robench.core.formatting import location
    from robench.defenses import load
    from robench.engine.device import choose_device
    from robench.records.collection import collect
    from robench.records.inputs import images_of
    from robench.records.migration import migrate, overdue
    from robench.statistics.accuracy import percent

    where = choose_device(device)
    records = collect(results or (common.local(default_results(), pull=True),))
    failed = list(map(str, records.left_out))
    due = 0
    for record in records:
        job, place = record.job, location(record.folder)
        try:
            images = images_of(record, data_dir)
            reasons = overdue(record, images)
            if not reasons:
                continue
            done = ""
            if not dry_run:
                loaded = load(
                    job.defense.name, job.dataset.name, None, where, images.class_subset, images.image_size
                )
                after = migrate(record.folder or place, loaded, images, where)
                change = f"{percent(record.robust_accuracy)} to {percent(after.robust_accuracy)}"
                done = f"; robust % {change}"
        except RobenchError as error:
            failed.append(f"{place}: {error}")
            continue
        due += 1
        common.say(f"{place}: {'; '.join(reasons)}{done}")
    for line in failed:
        common.say(f"left as it is: {line}")
    common.say(f"{due} of {len(records)} records {'due' if dry_run else 'migrated'}")
    if failed:
        raise ResourceError(f"{len(failed)} records could not be read or migrated and were left unchanged")


@command.command("prune", short_help="Remove interrupted runs and superseded records.")
@click.argument("results", nargs=-1, type=common.Place(unfinished=True))
@click.option(
    "--only",
    multiple=True,
    callback=names,
    help="What to remove: partial, superseded or temporary.  [default: all three]",
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
def prune_command(results: tuple[str, ...], only: list[str], dry_run: bool) -> None:
    """Remove interrupted runs, superseded records and temporary files from the RESULTS folders.

    Files that a run is writing at this moment stay.
    """
    from robench.core.errors import ResourceError
    from robench.core.formatting import location, one_of, size
    from robench.records.prune import KINDS, prune, waste
    from robench.records.reading import LeftOut

    for kind in only:
        one_of("kind", kind, KINDS)
    total = count = 0
    left_out = []
    for root in results or (common.local(default_results(), pull=True, unfinished=True),):
        for item in list(waste(root, only or KINDS)):
            if not dry_run:
                try:
                    prune([item])
                except ResourceError as error:
                    left_out.append(LeftOut.of(item.path, error))
                    continue
            total, count = total + item.size, count + 1
            common.say(f"{item.kind:<10}  {size(item.size):>8}  {location(item.path)}")
    verb = "would be removed" if dry_run else "removed"
    common.say(f"{count} {verb}, {size(total)}" if count else "nothing to remove")
    common.report(left_out, count, "could not be removed")

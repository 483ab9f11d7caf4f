"""robench board: a table made from records alone."""

import sys
from pathlib import Path

import click

from robench.cli import common
from robench.cli.completion import folders
from robench.core.errors import UsageError
from robench.core.formatting import location
from robench.evaluation.options import default_results
from robench.reports.table import BOARD_FORMATS as FORMATS
from robench.reports.table import COLUMNS, FIELDS, SORTS

PAGES = "html"


def _beside(root: str) -> Path:
    """The default folder of pages: beside the records, or in the current folder if those come from a URL."""
    from robench.records.remote import shown

    remote = "://" in root or shown(root) != root
    return Path("board") if remote else Path(root).resolve().parent / "board"


@click.command("board")
@click.argument("results", nargs=-1, type=common.Place(), shell_complete=folders)
@click.option(
    "--format",
    "form",
    metavar="NAME",
    type=click.Choice((*FORMATS, PAGES)),
    default="text",
    show_default=True,
    help=f"One of {', '.join((*FORMATS, PAGES))}.",
)
@click.option(
    "--only",
    metavar="PATTERN",
    multiple=True,
    callback=common.names,
    help="Show only these rows: a pattern for the defense (mimir-*), or FIELD=PATTERN, where FIELD is "
    f"{', '.join(FIELDS)}.",
)
@click.option(
    "--columns",
    metavar="NAME",
    multiple=True,
    callback=common.names,
    help=f"Show only these columns, of {', '.join(COLUMNS)}.",
)
@click.option(
    "--more",
    is_flag=True,
    help="Also show other suites, other attacker knowledge, smaller protocols, sweeps.",
)
@click.option(
    "--sort",
    metavar="COLUMN",
    type=click.Choice(SORTS),
    default="robust",
    show_default=True,
    help=f"Sort rows by {', '.join(SORTS)}, best first.",
)
@click.option("--no-intervals", is_flag=True, help="Leave out the confidence intervals.")
@click.option("--no-header", is_flag=True, help="Print the rows alone, for a table of your own.")
@click.option(
    "--claims", metavar="PATH", multiple=True, help="Also show the figures of RobustBench's model_info files."
)
@click.option("--output", metavar="DIR", help="Folder that the pages are written to.  [default: board]")
@click.option("--no-pictures", is_flag=True, help="Leave adversarial examples out of the pages.")
@common.data_dir
@common.trust
def command(results: tuple[str, ...], form: str, sort: str, **options) -> None:
    """Make leaderboards from the records in the RESULTS folders (default: results).

    Each dataset and threat model has its own leaderboard: the largest protocol with a record of its own suite under
    full attacker knowledge. --format html writes a folder of pages that need no server.

    \b
    robench board --only mimir-digits --columns defense,clean,robust --format latex --no-header
    robench board --only "dataset=cifar10,suite=pgd*" --more --format csv
    """
    pages = form == PAGES
    if not pages and (options["output"] or options["no_pictures"] or options["data_dir"]):
        raise UsageError("--output, --no-pictures and --data-dir apply only to --format html")
    if pages and (options["columns"] or options["more"] or options["no_header"]):
        raise UsageError(
            "--columns, --more and --no-header do not apply to --format html, which shows everything"
        )
    if options["claims"] and form in ("csv", "json"):
        raise UsageError(
            f"--claims does not apply to --format {form}, which has records alone: use text, md, latex or html"
        )
    from robench.records.collection import collect
    from robench.reports.board import Choice, board
    from robench.reports.robustbench import read_claims

    choice = Choice(
        only=options["only"],
        columns=options["columns"],
        more=options["more"] or None,
        header=not options["no_header"],
        intervals=not options["no_intervals"],
        claims=read_claims(options["claims"]),
    )
    roots = results or (str(default_results()),)
    records = collect(roots)
    if pages:
        from robench.reports.page import write_page

        index = write_page(
            records,
            options["output"] or _beside(roots[0]),
            sort=sort,
            choice=choice,
            pictures=not options["no_pictures"],
            data_dir=options["data_dir"],
        )
        click.echo(f"{len(records)} records: {location(index)}")
        common.report(records.left_out, len(records))
        return
    sys.stdout.write(board(records, form, common.console().width, sort, choice=choice))
    named = form != "csv" and choice.header
    common.report(records.left_out, len(records), named=named)

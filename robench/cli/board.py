"""robench board: a table made from records alone."""

import sys
from pathlib import Path

import click

from robench.cli import common
from robench.cli.completion import folders
from robench.core.errors import UsageError
from robench.core.formatting import location
from robench.evaluation.options import default_results
from robench.reports.table import FORMATS, SORTS, WIDTH

PAGES = "html"


@click.command("board")
@click.argument("results", nargs=-1, shell_complete=folders)
@click.option(
    "--format",
    "form",
    type=click.Choice((*FORMATS, PAGES)),
    default="text",
    show_default=True,
    help="Of the table.",
)
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    default="robust",
    show_default=True,
    help="The column whose best comes first.",
)
@click.option("--no-intervals", is_flag=True, help="Accuracies alone.")
@click.option(
    "--claims", multiple=True, help="Files or folders of RobustBench's model_info: shown apart, as claimed."
)
@click.option("--output", help="Folder of the pages.  [default: board, beside the first RESULTS]")
@click.option("--no-pictures", is_flag=True, help="Pages without pictures of the certificates.")
@click.option("--data-dir", help="Where data sets with files lie, to draw pictures from them.")
@common.trust
def command(
    results: tuple[str, ...],
    form: str,
    sort: str,
    no_intervals: bool,
    claims: tuple[str, ...],
    output: str | None,
    no_pictures: bool,
    data_dir: str | None,
) -> None:
    """Make a table from the records in the RESULTS folders (default: results).

    With --format html it is a folder of pages, which open from disk and from any static host.
    """
    if form != PAGES and (output or no_pictures or data_dir):
        raise UsageError("--output, --no-pictures and --data-dir are of pages: add --format html")
    if claims and form == "csv":
        raise UsageError("--claims are shown in text, md, latex and html: csv is of records alone")
    from robench.records.collection import collect
    from robench.reports.board import board
    from robench.reports.robustbench import read_claims

    roots = results or (str(default_results()),)
    found = collect(roots)
    if form == PAGES:
        from robench.reports.page import write_page

        made = write_page(
            found,
            output or Path(roots[0]).resolve().parent / "board",
            sort=sort,
            intervals=not no_intervals,
            pictures=not no_pictures,
            data_dir=data_dir,
            claims=read_claims(claims),
        )
        click.echo(f"{len(found)} records: {location(made)}")
        common.report(found.left_out, len(found))
        return
    theirs = read_claims(claims)
    sys.stdout.write(
        board(
            found, form, width=WIDTH + 40 * bool(theirs), sort=sort, intervals=not no_intervals, claims=theirs
        )
    )
    common.report(found.left_out, len(found), named=form != "csv")

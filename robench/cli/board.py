"""robench board: a table made from records alone."""

import sys

import click

from robench.evaluate import default_results
from robench.results.board import SORTS, board, collect
from robench.results.grid import FORMATS


@click.command("board")
@click.argument("results", nargs=-1)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="Of the table.",
)
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    default="robust %",
    show_default=True,
    help="The column whose best comes first.",
)
@click.option("--no-intervals", is_flag=True, help="Accuracies alone.")
def command(results: tuple[str, ...], form: str, sort: str, no_intervals: bool) -> None:
    """Make a table from the records in the RESULTS folders (default: results)."""
    found = collect(results or (str(default_results()),))
    sys.stdout.write(board(found, form, sort=sort, intervals=not no_intervals))

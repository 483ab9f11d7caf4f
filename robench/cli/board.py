"""robench board: a table made from records alone."""

import sys

import click

from robench.evaluate import default_results


@click.command("board")
@click.argument("results", nargs=-1)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "md"]),
    default="text",
    show_default=True,
    help="Of the table.",
)
def command(results: tuple[str, ...], form: str) -> None:
    """Make a table from the records in the RESULTS folders (default: results)."""
    from robench.results.board import board, collect

    sys.stdout.write(board(collect(results or (str(default_results()),)), form))

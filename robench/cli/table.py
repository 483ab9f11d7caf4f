"""robench table: a paper's own table, from records alone."""

import sys

import click

from robench.evaluate import default_results
from robench.results.grid import FORMATS

PAPERS = ("purifiers",)


@click.command("table")
@click.argument("paper", type=click.Choice(PAPERS))
@click.argument("results", nargs=-1)
@click.option(
    "--suite", default="purifier", show_default=True, help="The ladder whose rungs are the columns."
)
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True)
def command(paper: str, results: tuple[str, ...], suite: str, form: str) -> None:
    """Print the table of PAPER from the records in the RESULTS folders (default: results).

    purifiers: each purifier undefended, oblivious, under BPDA and under exact gradients, with and without EOT.
    Cells without a record say which command fills them.

    \b
    robench run --defense maep-digits --attack purifier
    robench table purifiers
    """
    from robench.results.board import collect
    from robench.results.grid import render
    from robench.results.ladder import purifiers

    tables = purifiers(collect(results or (str(default_results()),)), suite)
    if not tables:
        sys.stdout.write(
            "No records of purifiers: robench run --defense maep-digits --attack purifier makes them.\n"
        )
    sys.stdout.write("\n".join(render(table, form) for table in tables))

"""robench table: a paper's own table, from records alone."""

import sys

import click

from robench.evaluate import default_results
from robench.results.grid import FORMATS

# The ladder whose records each table holds, when nothing is said.
PAPERS = {"purifiers": "purifier", "unforeseen": "unforeseen"}
_EXAMPLE = {"purifiers": "maep-digits", "unforeseen": "mimir"}


@click.command("table")
@click.argument("paper", type=click.Choice(tuple(PAPERS)))
@click.argument("results", nargs=-1)
@click.option("--suite", help="The ladder whose rungs it shows.  [default: purifier or unforeseen]")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True)
def command(paper: str, results: tuple[str, ...], suite: str | None, form: str) -> None:
    """Print the table of PAPER from the records in the RESULTS folders (default: results).

    purifiers: each purifier undefended, oblivious, under BPDA and under exact gradients, with and without EOT.
    unforeseen: what attacks of other kinds leave of each defense, and their mean.
    Cells without a record say which command fills them.

    \b
    robench run --defense maep-digits --attack purifier
    robench table purifiers
    """
    from robench.results.board import collect
    from robench.results.grid import render
    from robench.results.ladder import purifiers
    from robench.results.unforeseen import unforeseen

    makers = {"purifiers": purifiers, "unforeseen": unforeseen}
    ladder = suite or PAPERS[paper]
    tables = makers[paper](collect(results or (str(default_results()),)), ladder)
    if not tables:
        made = f"robench run --defense {_EXAMPLE[paper]} --attack {ladder}"
        sys.stdout.write(f"No records for this table: {made} makes them.\n")
    sys.stdout.write("\n".join(render(table, form) for table in tables))

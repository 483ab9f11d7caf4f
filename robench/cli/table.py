"""robench table: a paper's own table, from records alone."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from robench.errors import UsageError
from robench.evaluate import default_results
from robench.results.grid import FORMATS
from robench.results.record import Record

PAPERS = ("purifiers", "transfer")


@click.command("table")
@click.argument("paper", type=click.Choice(PAPERS))
@click.argument("results", nargs=-1)
@click.option("--suite", help="The ladder of the records.  [default: purifier; for transfer purifier-cheap]")
@click.option(
    "--picture", help="transfer: a PNG of each matrix, the family before the ending where there are several."
)
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True)
def command(paper: str, results: tuple[str, ...], suite: str | None, picture: str | None, form: str) -> None:
    """Print the table of PAPER from the records in the RESULTS folders (default: results).

    purifiers: each purifier undefended, oblivious, under BPDA and under exact gradients, with and without EOT.
    Cells without a record say which command fills them.

    transfer: (trained on) x (tested on), for each family of purifiers that stands before a strange data set.

    \b
    robench run --defense maep-digits --attack purifier
    robench table purifiers
    robench table transfer --picture transfer.png
    """
    from robench.results.board import collect

    records = collect(results or (str(default_results()),))
    if paper == "transfer":
        _transfer(records, suite or "purifier-cheap", picture, form)
        return
    if picture:
        raise UsageError("--picture goes with transfer")
    from robench.results.grid import render
    from robench.results.ladder import purifiers

    tables = purifiers(records, suite or "purifier")
    if not tables:
        sys.stdout.write(
            "No records of purifiers: robench run --defense maep-digits --attack purifier makes them.\n"
        )
    sys.stdout.write("\n".join(render(table, form) for table in tables))


def _transfer(records: Sequence[Record], suite: str, picture: str | None, form: str) -> None:
    from robench.cli.transferring import show
    from robench.results.transfer import matrices

    found = matrices(records, suite)
    if not found:
        sys.stdout.write(
            "No records of transfer: robench run --defense maep --protocol transfer --from digits --to cifar10 makes "
            "them.\n"
        )
    show(found, Path(picture) if picture else None, form)

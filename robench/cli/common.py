"""Options that several commands take, worded once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from robench.core.errors import CheckFailed
from robench.core.sanitize import plain
from robench.core.trust import trusting

if TYPE_CHECKING:
    from robench.records.reading import LeftOut


def _trust(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        context.with_resource(trusting(lambda line: click.echo(plain(f"robench: {line}"), err=True)))


seed = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Decides every random number."
)
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
batch_size = click.option("--batch-size", default="auto", show_default=True, help="Images a network call.")
checkpoint = click.option("--checkpoint", help="Weights in place of the card's.")
data_dir = click.option("--data-dir", help="Where data sets with files lie.")
results = click.option("--results", help="Folder of all records.  [default: results]")
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, and nothing else.")
trust = click.option(
    "--trust",
    is_flag=True,
    expose_value=False,
    callback=_trust,
    help="Load code, models and paths that records, cards and other files name, and say which.",
)


def report(left_out: "Sequence[LeftOut]", used: int, what: str = "left out", named: bool = False) -> None:
    """End with exit code 1 when something could not be used: each by name, and why.

    Args:
        used: how many could be.
        named: whether the output names them already, so that their number is enough.

    Raises:
        CheckFailed: when there is any.
    """
    if not left_out:
        return
    count = f"{len(left_out)} of {used + len(left_out)} {what}"
    lines = [] if named else [f"- {plain(str(each))}" for each in left_out]
    raise CheckFailed("\n".join([count + (":" if lines else ""), *lines]))

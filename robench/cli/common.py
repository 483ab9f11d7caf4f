"""Options that several commands take, worded once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from robench.core.errors import CheckFailed
from robench.core.sanitize import plain
from robench.core.specs import split
from robench.core.trust import trusting

if TYPE_CHECKING:
    from robench.records.reading import LeftOut


def _trust(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        context.with_resource(trusting(lambda line: click.echo(plain(f"robench: {line}"), err=True)))


def names(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Several names, comma-separated or repeated."""
    return [name for value in values for name in split(value)]


defenses = click.option(
    "--defense",
    "defenses",
    metavar="NAME",
    multiple=True,
    required=True,
    callback=names,
    help="Card, family, .toml or spec; several by commas.",
)
protocol = click.option("--protocol", metavar="NAME", help="Data set, images, threat and suites by one name.")
dataset = click.option("--dataset", metavar="NAME", help="A data set, when no protocol is named.")
threat = click.option(
    "--threat", metavar="KIND:RADIUS", help="Norm or transformation and radius: Linf:8/255, fog:0.4."
)
seed = click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Decides every random number.",
)
device = click.option(
    "--device", metavar="NAME", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
batch_size = click.option(
    "--batch-size", metavar="N", default="auto", show_default=True, help="Images in one network call."
)
checkpoint = click.option("--checkpoint", metavar="FILE", help="Weights in place of the card's.")
data_dir = click.option("--data-dir", metavar="DIR", help="Folder of data sets that have files.")
results = click.option("--results", metavar="DIR", help="Folder of all records.  [default: results]")
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

"""Options that several commands share."""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click
from rich.console import Console
from rich.text import Text

from robench.cli.completion import files, folders, names_of
from robench.core.errors import CheckFailed, RobenchError
from robench.core.sanitize import plain
from robench.core.specs import split
from robench.core.trust import trusting

if TYPE_CHECKING:
    from robench.records.reading import LeftOut


# Columns of output that goes to a file or a pipe.
_UNBOUNDED = 10_000


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
    shell_complete=names_of("defense"),
    help="Card, family, file, spec; comma-separated.",
)
protocol = click.option(
    "--protocol",
    metavar="NAME",
    shell_complete=names_of("protocol"),
    help="Sets dataset, number of images, threat and suites.",
)
dataset = click.option(
    "--dataset",
    metavar="NAME",
    shell_complete=names_of("dataset"),
    help="Dataset, instead of --protocol.",
)
threat = click.option(
    "--threat",
    metavar="KIND:RADIUS",
    shell_complete=names_of("threat"),
    help="Threat model, such as Linf:8/255 or fog:0.4.",
)
seed = click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of every random number.",
)
device = click.option(
    "--device", metavar="NAME", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or xpu."
)
# For commands whose runs may use several GPUs.
devices = click.option(
    "--device", metavar="NAME", default="auto", show_default=True, help="cpu, cuda, cuda:N, cuda:0,1, xpu."
)
batch_size = click.option(
    "--batch-size", metavar="N", default="auto", show_default=True, help="Number of images per network call."
)
checkpoint = click.option(
    "--checkpoint", metavar="FILE", shell_complete=files, help="Weights to use instead of the card's."
)
data_dir = click.option(
    "--data-dir", metavar="DIR", shell_complete=folders, help="Folder of the datasets' files."
)
results = click.option(
    "--results",
    "--output",
    "results",
    metavar="DIR",
    shell_complete=folders,
    help="Folder that records are written to and read from.  [default: results]",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
trust = click.option(
    "--trust",
    is_flag=True,
    expose_value=False,
    callback=_trust,
    help="Allow records, cards and other files to name code, models and paths; prints what is loaded.",
)


class _Unpadded:
    """Standard output without the spaces with which tables fill their lines."""

    def write(self, text: str) -> int:
        return sys.stdout.write(re.sub(" +$", "", text, flags=re.MULTILINE))

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)


def local(place: Path | str, pull: bool = False, unfinished: bool = False) -> Path:
    """The folder on this machine for a place that may be a URL; what changes in it is sent when the command ends."""
    if "://" not in str(place):
        return Path(place)
    from robench.records import remote

    folder = remote.local_copy(place, pull, unfinished)
    click.get_current_context().call_on_close(lambda: remote.push(folder))
    return folder


class Place(click.ParamType):
    """A folder of records or its URL, as a path on this machine with all records of the folder.

    Args:
        unfinished: whether unfinished runs are needed as well.
    """

    name = "folder"

    def __init__(self, unfinished: bool = False):
        self.unfinished = unfinished

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(local(value, True, self.unfinished)) if "://" in value else value


def console() -> Console:
    """The console for tables: as wide as the terminal. In a pipe, lines are neither folded nor padded."""
    terminal = Console()
    if terminal.is_terminal:
        return terminal
    return Console(file=cast(IO[str], _Unpadded()), width=None if "COLUMNS" in os.environ else _UNBOUNDED)


def say(line: object, style: str = "") -> None:
    """Print one line of text, whatever its length and characters."""
    console().print(Text(plain(str(line)), style=style), soft_wrap=True)


def print_json(content: object) -> None:
    """Print what --json promises: one value on stdout, and nothing else."""
    json.dump(content, sys.stdout, indent=2)
    sys.stdout.write("\n")


def note(text: str, style: str = "dim") -> None:
    """Print a remark to stderr."""
    Console(stderr=True).print(Text(plain(f"robench: {text}"), style=style), soft_wrap=True)


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
    lines = [] if named else [f"- {plain(str(item))}" for item in left_out]
    raise CheckFailed("\n".join([count + (":" if lines else ""), *lines]))


@contextmanager
def collected(errors: list[tuple[str, RobenchError]], name: str, alone: bool) -> Iterator[None]:
    """Keep the error of one of several items, so that the others are looked at too; `raise_worst` raises it.

    Args:
        errors: where the error goes, with `name`.
        alone: whether there is only this item; then its error is not printed among the results as well.
    """
    try:
        yield
    except RobenchError as error:
        if not alone:
            click.echo(plain(f"FAILED: {error}"))
        errors.append((name, error))


def raise_worst(errors: Sequence[tuple[str, RobenchError]]) -> None:
    """Raise one error for all, with the highest exit code among them and a line for each; nothing if there are none.

    Raises:
        RobenchError: of the kind with the highest exit code.
    """
    if errors:
        worst = max((error for _, error in errors), key=lambda error: error.exit_code)
        raise type(worst)("\n".join(str(error) for _, error in errors))

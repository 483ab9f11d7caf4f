"""What the commands that make records share: options, help in groups, progress and output."""

import functools
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from robench.catalog import Protocol, find_protocol
from robench.cli import common, config
from robench.cli.completion import names_of
from robench.core import registry, specs
from robench.core.errors import RobenchError, is_path, unknown_name
from robench.defenses.resolution import is_family, resolve
from robench.evaluation.options import Options, default_results
from robench.evaluation.progress import Bar
from robench.evaluation.protocol import choose_protocol, find_suites
from robench.reports.table import Grid, render
from robench.threats.knowledge import check_knowledge

if TYPE_CHECKING:
    from robench.records.record import Record

_GROUPS = {
    "What to run": "defenses method attack attacks protocol sources targets dataset threat samples knowledge seeds mi "
    "finetune",
    "How to run it": "draws alpha estimate certify_first seed device batch_size precision compile deterministic "
    "workers checkpoint data_dir",
    "Several machines": "share engine address gpus_per_worker",
    "Records and output": "results fresh as_json config save_config trust",
}


@dataclass(frozen=True)
class Selection:
    """What is run on what, as the options say."""

    defenses: list[str]
    attacks: list[str]
    protocol: str | None = None
    dataset: str | None = None
    threat: str | None = None
    samples: int | None = None
    knowledge: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Refuse unknown names before anything is imported that takes long.

        Raises:
            UsageError: with the nearest names.
        """
        protocol = find_protocol(self.protocol) if self.protocol else None
        dataset = self.dataset or (protocol and protocol.dataset)
        if isinstance(dataset, str) and is_path(dataset):
            raise unknown_name("dataset", dataset, ())
        if dataset and (base := specs.parse(dataset).name.partition(":")[0]) not in registry.datasets:
            raise unknown_name("dataset", base, registry.datasets)
        find_suites(self.attacks)
        for level in self.knowledge:
            check_knowledge(level)
        for defense in self.defenses:
            # Purifiers of a family may be for any dataset of a protocol of transfer.
            if dataset or not is_family(defense):
                resolve(defense, dataset)

    def chosen(self) -> Protocol:
        """The protocol that these options name or make up."""
        return choose_protocol(self.protocol, self.dataset, self.threat, self.samples, self.attacks or None)


@dataclass(frozen=True)
class Running:
    """How it is run, and where progress and results are shown."""

    options: Options
    bar: Bar
    as_json: bool

    def print_json(self, records: "Sequence[Record]", **more: Any) -> None:
        """Print what --json promises: one object on stdout, and nothing else."""
        common.print_json({"records": [record.to_dict() for record in records], **more})


def collect(records: "Iterable[Record]") -> "tuple[list[Record], RobenchError | None]":
    """The records that are made, and the error if others fail.

    Raises:
        RobenchError: if no record is made.
    """
    made: list[Record] = []
    try:
        for record in records:
            made.append(record)
    except RobenchError as error:
        if not made:
            raise
        return made, error
    return made, None


class GroupedCommand(click.Command):
    """A command whose help lists its options in groups, and whose options may come from a file."""

    def invoke(self, ctx: click.Context) -> Any:
        config.mark(ctx)
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = {name: title for title, listed in _GROUPS.items() for name in listed.split()}
        if help_option := self.get_help_option(ctx):
            names[str(help_option.name)] = "Records and output"
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            line = parameter.get_help_record(ctx)
            if line and isinstance(parameter, click.Option):
                groups.setdefault(names.get(parameter.name or "", "Other options"), []).append(line)
        for title in [*_GROUPS, "Other options"]:
            if title in groups:
                with formatter.section(title):
                    formatter.write_dl(groups[title], col_max=28)


_SELECTION = (
    common.defenses,
    click.option(
        "--attack", "attacks", metavar="SUITE|SPEC", multiple=True, callback=common.names,
        shell_complete=names_of("attack"), help="Suite, spec, or specs joined by +; comma-separated.",
    ),
    common.protocol,
    common.dataset,
    common.threat,
    click.option(
        "--samples", metavar="N", type=int, help="Number of images.  [default: the protocol's]"
    ),
    click.option(
        "--knowledge", metavar="LEVEL", multiple=True, callback=common.names, shell_complete=names_of("knowledge"),
        help="full, bpda, oblivious, known-noise, transfer:NAME, surrogate:NAME.  [default: full]",
    ),
)  # fmt: skip
_PRECISION = (
    click.option(
        "--precision", metavar="NAME", default="auto", show_default=True,
        help="auto, fp32 or bf16, for the search.",
    ),
    click.option("--compile", is_flag=True, help="Use torch.compile for the search (docs/gpu.md)."),
    click.option("--deterministic", is_flag=True, help="Same bits in every run on a GPU; slower."),
    click.option(
        "--workers", metavar="N", type=click.IntRange(min=1), help="Processes.  [default: cores, 1 on GPUs]"
    ),
)  # fmt: skip
_RUNNING = (
    common.seed, common.devices, common.batch_size, *_PRECISION, common.checkpoint, common.data_dir, common.results,
    click.option("--fresh", is_flag=True, help="Start over, even if there is a record."),
    common.as_json, common.trust,
)  # fmt: skip
# Those that are fields of Options as they are.
_FIELDS = ("seed", "device", "batch_size", "precision", "compile", "deterministic", "workers", "checkpoint", "data_dir",
           "fresh")  # fmt: skip


def selecting(*without: str) -> Callable[[Callable], Callable]:
    """Give a command the options of `Selection`, and the value as its argument `selection`.

    Args:
        without: options that it does not take.
    """

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def wrapped(**given: Any) -> Any:
            taken = {item.name: given.pop(item.name) for item in fields(Selection) if item.name in given}
            selection = Selection(**taken)
            selection.check()
            config.save()
            return command(selection=selection, **given)

        return _with(wrapped, (*_SELECTION, *config.options), without)

    return decorate


def running(*without: str, **settings: Any) -> Callable[[Callable], Callable]:
    """Give a command the options of how to run, and a `Running` as its argument `running`.

    Args:
        without: options that it does not take; settings: fields of Options in their place.
    """

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def wrapped(**given: Any) -> Any:
            taken = {name: given.pop(name) for name in _FIELDS if name in given}
            results, as_json = common.local(given.pop("results") or default_results()), given.pop("as_json")
            with Bar(Console(stderr=True)) as bar:
                options = Options(
                    **taken,
                    **settings,
                    results=results,
                    command=shlex.join(["robench", *sys.argv[1:]]),
                    progress=bar.update,
                    note=bar.note,
                )
                show = command(running=Running(options, bar, as_json), **given)
            # What is printed when all runs are done, and the bar is gone.
            if show is not None:
                show()

        return _with(wrapped, _RUNNING, without)

    return decorate


def _with(command: Callable, options: Sequence[Callable], without: Sequence[str]) -> Callable:
    for option in reversed(options):
        decorated = option(command)
        # click keeps the options of a function in a list of its own.
        if decorated.__click_params__[-1].name in without:
            decorated.__click_params__.pop()
        command = decorated
    return command


def show_picture(table: Grid, picture: Path) -> None:
    """Print a table, and where its plot is."""
    from robench.records.remote import shown

    sys.stdout.write(render(table, "text", common.console().width))
    common.say(f"plot: {shown(picture)}")

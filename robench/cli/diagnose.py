"""robench diagnose: spend more on finding out whether an evaluation failed."""

import sys
from collections.abc import Callable
from dataclasses import replace

import click

from robench.cli import common
from robench.cli.completion import names_of
from robench.cli.running import GroupedCommand, Running, Selection, running
from robench.core.errors import UsageError
from robench.evaluation.protocol import choose_protocol
from robench.reports.table import render


@click.command("diagnose", cls=GroupedCommand)
@common.defenses
@click.option(
    "--mi",
    is_flag=True,
    help="Estimate how much information each layer carries about the image, instead of looking for failures.",
)
@common.protocol
@common.dataset
@common.threat
@click.option(
    "--samples",
    metavar="N",
    type=int,
    help="Number of images, the first of the test split; at least 256 with --mi.",
)
@click.option(
    "--knowledge",
    metavar="LEVEL",
    shell_complete=names_of("knowledge"),
    default="full",
    show_default=True,
    help="full, bpda, oblivious, known-noise, transfer:NAME or surrogate:NAME.",
)
@click.option(
    "--seeds",
    metavar="N",
    type=click.IntRange(min=1),
    help="Number of seeds for --mi, starting at --seed.  [default: 3]",
)
@common.device
@running("precision", "device", "compile", "deterministic", "workers", precision="fp32")
def command(
    running: Running,
    defenses: list[str],
    mi: bool,
    samples: int | None,
    knowledge: str,
    seeds: int | None,
    **named: str | None,
) -> Callable[[], None]:
    """Find out whether attacks on a defense fail; boards show the warnings.

    The exit code is 0 even if failures are found. Repeat the command to resume an interrupted diagnosis.

    \b
    robench diagnose --defense pgd-at
    robench diagnose --mi --defense mimir,mae-at,pgd-at --samples 500
    """
    if seeds is not None and not mi:
        raise UsageError("--seeds says how often --mi measures: add --mi, or leave it out")
    Selection(defenses, [], **named, samples=samples, knowledge=[knowledge]).check()
    from robench.diagnosis.diagnose import diagnose, grid

    options = running.options
    chosen = choose_protocol(named["protocol"], named["dataset"], named["threat"], samples)
    if mi:
        from robench.diagnosis import information

        if samples is None:
            chosen = replace(chosen, samples=information.SAMPLES)
        first = options.seed
        measured = information.measure(
            defenses, chosen, list(range(first, first + (seeds or information.SEEDS))), options
        )
        content, tables = [measured.content], information.grids(measured)
    else:
        diagnoses = []
        for diagnosis in diagnose(defenses, chosen, knowledge, options):
            diagnoses.append(diagnosis)
            running.bar.done()
        content, tables = [diagnosis.content for diagnosis in diagnoses], list(map(grid, diagnoses))

    def show() -> None:
        if running.as_json:
            common.print_json({"information" if mi else "diagnoses": content})
            return
        texts = [render(table, "text", common.console().width) for table in tables]
        sys.stdout.write("".join(text + "\n" for text in texts) if mi else "\n".join(texts))

    return show

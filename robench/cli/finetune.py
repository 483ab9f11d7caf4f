"""What robench run --finetune does: a purifier for each number of images, a table and a picture for each cell."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from robench.catalog import Protocol, find_suite
from robench.cli.transfer import Asked, print_json
from robench.core import specs
from robench.evaluation import finetune
from robench.evaluation.dataset_transfer import Cell, play
from robench.evaluation.run import Options
from robench.records.store import slug
from robench.reports import finetune as tables
from robench.reports.table import WIDTH, render


def curves(
    asked: Asked, cells: Sequence[Cell], protocol: Protocol, options: Options, bar: Any, as_json: bool
) -> None:
    """Fine-tune, play and show every cell."""
    images = finetune.counts(asked.finetune or "")
    suites = asked.attacks or protocol.suites
    everything = []
    for cell in cells:
        found = []
        for count, tuned in finetune.curve(cell, images, options):
            records = []
            for _, record in play([tuned], protocol, options, suites, asked.threat, asked.samples):
                records.append(record)
                bar.done()
            found.append((count, records))
            everything += records
        if not as_json:
            _show(cell, found, suites[0], Path(options.results))
    if as_json:
        print_json(everything)


def _show(cell: Cell, found: tables.Found, ladder: str, results: Path) -> None:
    suite = find_suite(ladder)
    title = (
        f"{cell.purifier} before {cell.end.classifier}, fine-tuned on {specs.parse(cell.end.dataset).name}"
    )
    sys.stdout.write(render(tables.grid(title, found, suite), "text", WIDTH))
    name = f"finetune-{slug(cell.purifier)}-{slug(cell.end.dataset)}.png"
    click.echo(f"picture: {tables.picture(title, found, suite, results / name)}")

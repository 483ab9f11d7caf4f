"""What robench run does for a protocol of transfer: cells, table, picture."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from robench.catalog import find_protocol
from robench.evaluation.run import Options
from robench.records.record import Record
from robench.records.store import slug


@dataclass(frozen=True)
class Asked:
    """The options that transfer takes."""

    defenses: list[str]
    attacks: list[str]
    protocol: str
    sources: list[str]
    targets: list[str]
    threat: str | None
    samples: int | None
    finetune: str | None


def transfer(asked: Asked, options: Options, bar: Any, as_json: bool) -> None:
    """Play every cell, then print the matrix and draw it; with --finetune the curve instead."""
    from robench.evaluation import dataset_transfer as engine
    from robench.reports.dataset_transfer import grid, matrices, picture
    from robench.reports.plots.style import save
    from robench.reports.table import WIDTH, render

    protocol = find_protocol(asked.protocol)
    cells = engine.plan(protocol, asked.defenses, asked.sources, asked.targets, options)
    suites = asked.attacks or None
    if asked.finetune is not None:
        from robench.cli.finetune import curves

        curves(asked, cells, protocol, options, bar, as_json)
        return
    records = []
    for _, record in engine.play(cells, protocol, options, suites, asked.threat, asked.samples):
        records.append(record)
        bar.done()
    if as_json:
        print_json(records)
        return
    ladder = (suites or protocol.suites)[0]
    for matrix in matrices(records, ladder, whole=True):
        sys.stdout.write(render(grid(matrix), "text", WIDTH))
        made = save(picture(matrix), Path(options.results) / f"transfer-{slug(matrix.family)}.png")
        click.echo(f"picture: {made}")


def print_json(records: Sequence[Record], **more: Any) -> None:
    """What --json promises: one object on stdout, and nothing else."""
    json.dump({"records": [record.to_dict() for record in records], **more}, sys.stdout, indent=2)
    sys.stdout.write("\n")

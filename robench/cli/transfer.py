"""robench transfer: purifiers trained on one dataset, before the classifier of another."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robench.catalog import Protocol, find_protocol, find_suite
from robench.cli import common
from robench.cli.running import GroupedCommand, Running, Selection, running, selecting, show_picture
from robench.core import specs

if TYPE_CHECKING:
    from robench.evaluation.dataset_transfer import Cell


@click.command("transfer", cls=GroupedCommand)
@selecting("dataset", "knowledge")
@click.option(
    "--from",
    "sources",
    metavar="NAME",
    multiple=True,
    callback=common.names,
    help="Datasets that the purifiers are trained on; comma-separated.",
)
@click.option(
    "--to",
    "targets",
    metavar="NAME",
    multiple=True,
    callback=common.names,
    help="Datasets that they are tested on; comma-separated.",
)
@click.option(
    "--finetune", metavar="N,N,...", help="Numbers of target images to fine-tune on, such as 0,10,50."
)
@running("checkpoint")
def command(
    selection: Selection, running: Running, sources: list[str], targets: list[str], finetune: str | None
) -> Callable[[], None]:
    """Test purifiers on datasets that they were not trained on, as a table and a plot.

    \b
    robench transfer --defense maep --from digits,cifar10 --to digits,cifar10
    robench transfer --defense maep --from digits --to cifar10 --finetune 0,10,50
    """  # fmt: skip
    return transfer(selection, sources, targets, finetune, running)


def transfer(
    selection: Selection,
    sources: Sequence[str],
    targets: Sequence[str],
    finetune: str | None,
    running: Running,
) -> Callable[[], None]:
    """Run every cell; what is returned shows the matrix, or with `finetune` the curves."""
    from robench.evaluation.dataset_transfer import plan, run_cells
    from robench.records.store import slug
    from robench.reports.dataset_transfer import grid, matrices, picture
    from robench.reports.plots.style import save

    protocol = find_protocol(selection.protocol or "transfer")
    cells = plan(protocol, selection.defenses, sources, targets, running.options)
    suites = selection.attacks or protocol.suites
    if finetune is not None:
        return _finetune(finetune, cells, protocol, suites, selection, running)
    runs = run_cells(cells, protocol, running.options, suites, selection.threat, selection.samples)
    records = [record for _, record in runs]
    if running.as_json:
        return lambda: running.print_json(records)

    def show() -> None:
        for matrix in matrices(records, suites[0], whole=True):
            path = Path(running.options.results) / f"transfer-{slug(matrix.family)}.png"
            show_picture(grid(matrix), save(picture(matrix), path))

    return show


def _finetune(
    text: str,
    cells: "Sequence[Cell]",
    protocol: Protocol,
    suites: Sequence[str],
    selection: Selection,
    running: Running,
) -> Callable[[], None]:
    """Fine-tune and run the purifier of each cell on each number of images."""
    from robench.evaluation.dataset_transfer import run_cells
    from robench.evaluation.finetune import counts, curve
    from robench.records.store import slug
    from robench.reports import finetune as finetuning

    images = counts(text)
    curves: list[tuple[Cell, finetuning.ByCount]] = []
    for cell in cells:
        points = []
        for count, tuned in curve(cell, images, running.options):
            runs = run_cells([tuned], protocol, running.options, suites, selection.threat, selection.samples)
            points.append((count, [record for _, record in runs]))
            running.bar.done()
        curves.append((cell, points))
    if running.as_json:
        everything = [record for _, points in curves for _, records in points for record in records]
        return lambda: running.print_json(everything)

    def show() -> None:
        suite = find_suite(suites[0])
        for cell, points in curves:
            dataset = specs.parse(cell.end.dataset).name
            title = f"{cell.purifier} before {cell.end.classifier}, fine-tuned on {dataset}"
            name = f"finetune-{slug(cell.purifier)}-{slug(cell.end.dataset)}.png"
            path = finetuning.picture(title, points, suite, Path(running.options.results) / name)
            show_picture(finetuning.grid(title, points, suite), path)

    return show

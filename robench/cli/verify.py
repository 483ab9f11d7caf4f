"""robench verify: re-check records from their certificates, by forward passes alone."""

from pathlib import Path

import click
from rich.console import Console

from robench.data import load_dataset
from robench.defenses import load
from robench.results.record import read_record
from robench.results.verify import verify


@click.command("verify")
@click.argument("records", nargs=-1, required=True)
@click.option("--checkpoint", help="Weights in place of the card's.")
@click.option("--data-dir", help="Where data sets with files lie.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def command(records: tuple[str, ...], checkpoint: str | None, data_dir: str | None, device: str) -> None:
    """Re-check RECORDS (folders) from their certificates."""
    from robench.engine.device import choose_device

    where, console = choose_device(device), Console()
    for path in records:
        record = read_record(path)
        images = load_dataset(record.job.dataset.name, record.job.dataset.split, record.job.n, data_dir)
        loaded = load(record.job.defense.name, record.job.dataset.name, checkpoint, where, images.among)
        for finding in verify(Path(path), loaded, images, device=where):
            console.print(str(finding), highlight=False, soft_wrap=True)

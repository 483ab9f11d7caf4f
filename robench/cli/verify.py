"""robench verify: re-check records from their certificates, by forward passes alone."""

from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from robench.cli import common
from robench.data import load_dataset
from robench.defenses import load
from robench.results.record import read_record
from robench.results.verify import TRUSTED, verify
from robench.results.wording import plain


@click.command("verify")
@click.argument("records", nargs=-1, required=True)
@click.option(
    "--defense", help="What is verified, by its name here.  [default: the defense that the record names]"
)
@common.checkpoint
@common.data_dir
@common.device
@common.trust
def command(
    records: tuple[str, ...],
    defense: str | None,
    checkpoint: str | None,
    data_dir: str | None,
    device: str,
) -> None:
    """Re-check RECORDS (folders) from their certificates, by forward passes alone.

    Proven is that this checkpoint gives wrong answers on so many allowed images, so that its robust accuracy on these
    images is at most the figure. Not proven is that no stronger attack exists, nor what a record says of machine, time,
    cost and doubts.
    """
    from robench.engine.device import choose_device

    where, console = choose_device(device), Console()
    for path in records:
        if len(records) > 1:
            console.print(Text(plain(path), style="bold"), soft_wrap=True)
        record = read_record(path)
        images = load_dataset(record.job.dataset.name, record.job.dataset.split, record.job.n, data_dir)
        loaded = load(
            defense or record.job.defense.name, record.job.dataset.name, checkpoint, where, images.among
        )
        for finding in verify(Path(path), loaded, images, device=where):
            console.print(Text(plain(str(finding))), soft_wrap=True)
        told = f"not proven: that no attack finds more; on trust: {', '.join(TRUSTED)}"
        console.print(Text(told, style="dim"), soft_wrap=True)

"""robench verify: re-check records from their certificates, by forward passes alone."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from robench.cli import common
from robench.cli.completion import folders, names_of
from robench.core.errors import CheckFailed, RobenchError
from robench.core.sanitize import plain

if TYPE_CHECKING:
    from robench.verification.verify import Report


@click.command("verify")
@click.argument("records", nargs=-1, shell_complete=folders, required=True)
@click.option(
    "--defense",
    shell_complete=names_of("defense"),
    help="Defense to verify.  [default: the one that the record names]",
)
@click.option(
    "--replay",
    type=click.IntRange(min=1),
    metavar="K",
    help="Attack K random images of each record again; their results must be the same.",
)
@click.option(
    "--replay-seed",
    type=int,
    metavar="S",
    help="Seed that chooses those images.  [default: random, so that the record's author cannot know it]",
)
@click.option("-v", "--verbose", is_flag=True, help="Print a line for each check.")
@common.checkpoint
@common.data_dir
@common.device
@common.trust
def command(
    records: tuple[str, ...],
    defense: str | None,
    replay: int | None,
    replay_seed: int | None,
    verbose: bool,
    checkpoint: str | None,
    data_dir: str | None,
    device: str,
) -> None:
    """Verify RECORDS (folders) by classifying their adversarial examples again.

    This proves that each adversarial example is within the threat model and is classified wrongly, so robust accuracy
    is at most the reported figure. It does not prove that no stronger attack exists. Some fields rest on trust: the
    output names them. --replay attacks a few images again, which tests those fields too.
    """
    from robench.defenses import load
    from robench.engine.device import choose_device
    from robench.records.inputs import defense_of, images_of
    from robench.records.record import read_record
    from robench.verification.replay import Sample
    from robench.verification.verify import report

    where, console = choose_device(device), common.console()
    failed: dict[str, RobenchError] = {}
    for path in records:
        if len(records) > 1:
            console.print(Text(plain(path), style="bold"), soft_wrap=True)
        with common.collected(failed, path, alone=len(records) == 1):
            record = read_record(path)
            name, images = defense_of(record, defense), images_of(record, data_dir)
            loaded = load(
                name, record.job.dataset.name, checkpoint, where, images.class_subset, images.image_size
            )
            sample = Sample.of(replay, replay_seed) if replay else None
            made = report(Path(path), loaded, images, where, sample)
            for line in _lines(made, verbose):
                console.print(Text(plain(line)), soft_wrap=True)
            if made.broken:
                fields = ", ".join(dict.fromkeys(item.field for item in made.broken))
                failed[path] = CheckFailed(f"{plain(path)} does not hold: {fields}")
    common.raise_worst(failed)


def _lines(made: "Report", verbose: bool) -> list[str]:
    """The output for one record: the result, failed checks (all checks if verbose) and the fields on trust."""
    from robench.verification.replay import REPLAYED

    shown = [item for item in made.findings if verbose or not item.held or item.field == REPLAYED]
    return [str(made), *map(str, shown), "on trust:", *(f"  {line}" for line in made.trust_lines)]

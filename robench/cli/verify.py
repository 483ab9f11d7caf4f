"""robench verify: re-check records from their certificates, by forward passes alone."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from robench.cli import common
from robench.cli.completion import folders, names_of
from robench.core.errors import CheckFailed, RobenchError
from robench.core.sanitize import plain

# robench.records.certification.FILE, which imports pyarrow.
CERTIFICATION = "certification.json"

if TYPE_CHECKING:
    from robench.verification.verify import Report


@click.command("verify")
@click.argument("records", nargs=-1, type=common.Place(), shell_complete=folders, required=True)
@click.option(
    "--defense",
    shell_complete=names_of("defense"),
    help="Defense to verify.  [default: the one that the record names]",
)
@click.option(
    "--replay",
    type=click.IntRange(min=1),
    metavar="K",
    help="Attack K random images of each record again; their results must be the same. A certification is proven again "
    "on K images.  [default: 10]",
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
            if (Path(path) / CERTIFICATION).is_file():
                _certification(
                    Path(path), defense, checkpoint, data_dir, device, replay, replay_seed, verbose
                )
                continue
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


def _certification(
    path: Path,
    defense: str | None,
    checkpoint: str | None,
    data_dir: str | None,
    device: str,
    replay: int | None,
    replay_seed: int | None,
    verbose: bool,
) -> None:
    """Verify the result of robench certify.

    Raises:
        CheckFailed: when it does not hold.
    """
    from robench.data import load_dataset
    from robench.defenses import load
    from robench.engine.device import choose_device
    from robench.records.certification import read
    from robench.verification import certification
    from robench.verification.replay import Sample

    result, where, console = read(path), choose_device(device), common.console()
    dataset = result.dataset
    images = load_dataset(dataset.name, dataset.split, result.n, data_dir)
    name = defense or result.defense.name
    loaded = load(name, dataset.name, checkpoint, where, images.class_subset, images.image_size)
    sample = Sample.of(replay or certification.SAMPLE, replay_seed)
    checked = certification.verify(path, loaded, images, where, sample)
    broken = [finding for finding in checked if not finding.held]
    for line in (
        "FAILED" if broken else f"VERIFIED: {checked[-1].proven}",
        *(str(finding) for finding in checked if verbose or not finding.held),
        certification.trust(result, sample),
    ):
        console.print(Text(plain(line)), soft_wrap=True)
    if broken:
        fields = ", ".join(dict.fromkeys(finding.field for finding in broken))
        raise CheckFailed(f"{plain(str(path))} does not hold: {fields}")


def _lines(made: "Report", verbose: bool) -> list[str]:
    """The output for one record: the result, failed checks (all checks if verbose) and the fields on trust."""
    from robench.verification.replay import REPLAYED

    shown = [item for item in made.findings if verbose or not item.held or item.field == REPLAYED]
    return [str(made), *map(str, shown), "on trust:", *(f"  {line}" for line in made.trust_lines)]

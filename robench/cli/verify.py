"""robench verify: check records by classifying their adversarial examples again."""

from pathlib import Path

import click

from robench.cli import common
from robench.cli.completion import folders, names_of
from robench.core.errors import CheckFailed, RobenchError
from robench.core.sanitize import plain

# robench.records.certification.FILE, which imports pyarrow.
CERTIFICATION = "certification.json"


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
    help="Attack K random images of each record again (default: none). For a certification, prove the bounds of K "
    "images again (default: 10).",
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
    is at most the reported figure. It does not prove that no stronger attack exists. The output names the fields that
    it cannot check. --replay attacks a few images again, which tests those fields too.
    """
    from robench.defenses import load
    from robench.engine.device import choose_device
    from robench.records.inputs import defense_of, images_of
    from robench.records.record import read_record
    from robench.verification.replay import REPLAYED, Sample
    from robench.verification.verify import report

    where = choose_device(device)
    failed: dict[str, RobenchError] = {}
    for path in records:
        if len(records) > 1:
            common.say(path, "bold")
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
            result = report(Path(path), loaded, images, where, sample)
            shown = [item for item in result.findings if verbose or not item.held or item.field == REPLAYED]
            for line in (
                result,
                *shown,
                "not checked (on trust):",
                *(f"  {line}" for line in result.trust_lines),
            ):
                common.say(line)
            if result.broken:
                fields = ", ".join(dict.fromkeys(item.field for item in result.broken))
                failed[path] = CheckFailed(f"verification of {plain(path)} failed: {fields}")
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

    result, where = read(path), choose_device(device)
    dataset = result.dataset
    images = load_dataset(dataset.name, dataset.split, result.n, data_dir)
    name = defense or result.defense.name
    loaded = load(name, dataset.name, checkpoint, where, images.class_subset, images.image_size)
    sample = Sample.of(replay or certification.SAMPLE, replay_seed)
    checked = certification.verify(path, loaded, images, where, sample)
    broken = [finding for finding in checked if not finding.held]
    shown = [finding for finding in checked if verbose or not finding.held]
    result_line = "FAILED" if broken else f"VERIFIED: {checked[-1].proven}"
    for line in (result_line, *shown, certification.trust(result, sample)):
        common.say(line)
    if broken:
        fields = ", ".join(dict.fromkeys(finding.field for finding in broken))
        raise CheckFailed(f"verification of {plain(str(path))} failed: {fields}")

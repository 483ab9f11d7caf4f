"""robench verify: check records by classifying their adversarial examples again."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from robench.cli import common
from robench.cli.completion import folders, names_of
from robench.core.errors import CheckFailed, RobenchError, UsageError
from robench.core.sanitize import plain

# FILE of robench.records.record and robench.records.certification, which import pyarrow.
RECORD, CERTIFICATION = "record.json", "certification.json"


@dataclass(frozen=True)
class _Options:
    """The options of the command line."""

    defense: str | None
    checkpoint: str | None
    data_dir: str | None
    device: str
    replay: int | None
    replay_seed: int | None
    verbose: bool


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
    items = [item for path in records for item in _items(path)]
    if replay_seed is not None and not replay and all(check == _record for _, _, check in items):
        raise UsageError("--replay-seed chooses the images of --replay: add --replay K, or leave it out")
    if device != "auto":
        from robench.engine.device import choose_device

        choose_device(device)  # one error for all records
    options = _Options(defense, checkpoint, data_dir, device, replay, replay_seed, verbose)
    failed: list[tuple[str, RobenchError]] = []
    for name, folder, check in items:
        if len(items) > 1:
            common.say(name, "bold")
        with common.collected(failed, name, alone=len(items) == 1):
            if fields := check(folder, options):
                broken = ", ".join(dict.fromkeys(fields))
                failed.append((name, CheckFailed(f"verification of {plain(name)} failed: {broken}")))
    common.raise_worst(failed)


def _items(path: str) -> list[tuple[str, Path, Callable[[Path, _Options], list[str]]]]:
    """The results in a folder: name, folder, and the function that verifies it.

    A folder from elsewhere may have a record and a certification. Boards show both, so both must hold.
    """
    folder = Path(path)
    if not (folder / CERTIFICATION).is_file():
        return [(path, folder, _record)]
    if not os.path.lexists(folder / RECORD):
        return [(path, folder, _certification)]
    return [(str(folder / CERTIFICATION), folder, _certification), (str(folder / RECORD), folder, _record)]


def _record(path: Path, options: _Options) -> list[str]:
    """Verify the record of a run, and return the fields that do not hold."""
    from robench.records.record import read_record

    record = read_record(path)

    from robench.defenses import load
    from robench.engine.device import choose_device
    from robench.records.inputs import defense_of, images_of
    from robench.verification.replay import REPLAYED, Sample
    from robench.verification.verify import report

    where = choose_device(options.device)
    name, images = defense_of(record, options.defense), images_of(record, options.data_dir)
    dataset = record.job.dataset.name
    loaded = load(name, dataset, options.checkpoint, where, images.class_subset, images.image_size)
    sample = Sample.of(options.replay, options.replay_seed) if options.replay else None
    result = report(path, loaded, images, where, sample)
    shown = [item for item in result.findings if options.verbose or not item.held or item.field == REPLAYED]
    for line in (result, *shown, "not checked (on trust):", *(f"  {line}" for line in result.trust_lines)):
        common.say(line)
    return [item.field for item in result.broken]


def _certification(path: Path, options: _Options) -> list[str]:
    """Verify the result of robench certify, and return the fields that do not hold."""
    from robench.records.certification import read

    result = read(path)

    from robench.data import load_dataset
    from robench.defenses import load
    from robench.engine.device import choose_device
    from robench.verification import certification
    from robench.verification.replay import Sample

    where = choose_device(options.device)
    dataset = result.dataset
    images = load_dataset(dataset.name, dataset.split, result.n, options.data_dir)
    name = options.defense or result.defense.name
    loaded = load(name, dataset.name, options.checkpoint, where, images.class_subset, images.image_size)
    sample = Sample.of(options.replay or certification.SAMPLE, options.replay_seed)
    checked = certification.verify(path, loaded, images, where, sample)
    broken = [finding for finding in checked if not finding.held]
    shown = [finding for finding in checked if options.verbose or not finding.held]
    result_line = "FAILED" if broken else f"VERIFIED: {checked[-1].proven}"
    for line in (result_line, *shown, certification.trust(result, sample)):
        common.say(line)
    return [finding.field for finding in broken]

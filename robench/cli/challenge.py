"""robench challenge: judge adversarial examples from any other tool."""

import shlex
import sys

import click

from robench.cli import common
from robench.cli.completion import files, folders, names_of


@click.command("challenge")
@click.argument("record", shell_complete=folders)
@click.argument("file", shell_complete=files)
@click.option("--finder", metavar="NAME", required=True, help="Name of the finder, for the new record.")
@click.option(
    "--defense",
    shell_complete=names_of("defense"),
    help="Defense to judge on.  [default: the one that the record names]",
)
@common.checkpoint
@common.data_dir
@common.device
@common.results
@common.trust
def command(
    record: str,
    file: str,
    finder: str,
    defense: str | None,
    checkpoint: str | None,
    data_dir: str | None,
    device: str,
    results: str | None,
) -> None:
    """Judge the images in FILE on the defense of RECORD; those that fool it lower its best known robust accuracy.

    FILE is a .pt, .npz, .npy or .safetensors file of images in [0, 1], one for each image of the record in the same
    order, or fewer with an array "ids". Files of AutoAttack (adv_complete) are supported. All images must be within
    the threat model of the record.

    \b
    robench challenge results/digits-linf/mimir-digits/autoattack mine.pt --finder "A. Turing"
    """
    from robench.records.record import read_record

    challenged = read_record(common.local(record, pull=True))

    from robench.core.formatting import location
    from robench.defenses import load
    from robench.engine.device import choose_device
    from robench.evaluation.challenge import challenge
    from robench.evaluation.options import default_results
    from robench.records.estimate import NOT_ATTACKED, bound
    from robench.records.inputs import defense_of, images_of
    from robench.records.samples import read_samples
    from robench.records.submission import read_submission
    from robench.statistics.accuracy import interval, percent

    where = choose_device(device)
    images = images_of(challenged, data_dir)
    submission = read_submission(file, tuple(images.x.shape))
    name = defense_of(challenged, defense)
    loaded = load(
        name, challenged.job.dataset.name, checkpoint, where, images.class_subset, images.image_size
    )
    new = challenge(
        challenged,
        submission,
        finder,
        loaded,
        images,
        where,
        common.local(results or default_results()),
        shlex.join(["robench", *sys.argv[1:]]),
    )
    assert new.folder is not None and challenged.folder is not None
    robust_before, robust_after = (
        {sample for sample, by in zip(rows["id"], rows["fooled_by"], strict=True) if by in ("", NOT_ATTACKED)}
        for rows in (read_samples(folder).to_pydict() for folder in (challenged.folder, new.folder))
    )
    n, was = len(images), bound(challenged.robust_accuracy, challenged.extra)
    common.say(
        f"{n - len(robust_after)} of {n} images are misclassified: robust accuracy {percent(new.robust_accuracy)} % "
        f"{interval(new.robust_accuracy)}"
    )
    common.say(
        f"{len(robust_before - robust_after)} of them survived {challenged.job.suite.name}: best known robust accuracy "
        f"{100 * len(robust_before & robust_after) / n:.2f} %, was {percent(was)} %"
    )
    common.say(f"record: {location(new.folder)}")

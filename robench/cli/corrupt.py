"""robench corrupt: write a dataset's images corrupted."""

import os

import click

from robench.cli import common
from robench.cli.completion import names_of


@click.command("corrupt")
@click.option(
    "--dataset",
    required=True,
    shell_complete=names_of("dataset"),
    help="Dataset whose test images are corrupted.",
)
@click.option("--output", metavar="DIR", required=True, help="Folder to write to.")
@click.option(
    "--corruption",
    "corruptions",
    metavar="NAME",
    multiple=True,
    callback=common.names,
    help="Names of corruptions, or common, validation or all.  [default: common]",
)
@click.option(
    "--severity",
    "severities",
    multiple=True,
    type=click.IntRange(1, 5),
    help="Severities, for ImageNet only.  [default: all five]",
)
@click.option(
    "--samples", type=click.IntRange(min=1), help="Number of images, from the first.  [default: all]"
)
@common.seed
@common.data_dir
@click.option("--workers", type=click.IntRange(min=1), help="Number of processes.  [default: one per core]")
def command(
    dataset: str,
    output: str,
    corruptions: list[str],
    severities: tuple[int, ...],
    samples: int | None,
    seed: int,
    data_dir: str | None,
    workers: int | None,
) -> None:
    """Write the corruptions of ImageNet-C for any dataset.

    ImageNet's images are written to folders in the layout of ImageNet-C, all others to .npy files in the layout of
    CIFAR-10-C. Repeat the command to resume an interrupted run.

    \b
    robench corrupt --dataset cifar10 --output CIFAR-10-C
    robench corrupt --dataset imagenet --output ImageNet-C --corruption fog,frost --severity 3
    """
    from robench.corruption.names import SEVERITIES
    from robench.data import load_dataset

    images = load_dataset(
        dataset, "test", samples, data_dir
    )  # refuses an unknown name before torch is imported

    from robench.data.export_corrupted import GROUPS, write_corrupted

    chosen = [name for given in corruptions or ["common"] for name in GROUPS.get(given, (given,))]
    folder = write_corrupted(
        images,
        output,
        list(dict.fromkeys(chosen)),
        severities or SEVERITIES,
        seed=seed,
        workers=workers or os.cpu_count() or 1,
        note=lambda text: common.note(text, style=""),
    )
    common.say(f"corrupted images: {folder}")

"""robench diagnose: spend more on finding out whether an evaluation failed."""

import json
import shlex
import sys
from dataclasses import replace

import click
from rich.console import Console

from robench.cli import common
from robench.cli.run import Bar, names


@click.command("diagnose")
@click.option(
    "--defense", "defenses", multiple=True, required=True, callback=names, help="Card, family, .toml or spec."
)
@click.option("--mi", is_flag=True, help="What each layer tells of the image, instead of signs of failure.")
@click.option("--protocol", help="Data set, images and threat by one name.")
@click.option("--dataset", help="A data set, when no protocol is named.")
@click.option("--threat", help="Norm and radius, such as Linf:8/255.")
@click.option(
    "--samples", type=int, help="How many images, the first of the test split; 256 or more for --mi."
)
@click.option(
    "--knowledge",
    default="full",
    show_default=True,
    help="full, bpda, oblivious, transfer:NAME or surrogate:NAME.",
)
@common.seed
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="Of --mi: how many, from --seed.  [default: 3]",
)
@common.device
@common.batch_size
@common.checkpoint
@common.data_dir
@common.results
@click.option("--fresh", is_flag=True, help="Make its runs again.")
@common.as_json
@common.trust
def command(
    defenses: list[str],
    mi: bool,
    protocol: str | None,
    dataset: str | None,
    threat: str | None,
    samples: int | None,
    knowledge: str,
    seed: int,
    seeds: int | None,
    device: str,
    batch_size: str,
    checkpoint: str | None,
    data_dir: str | None,
    results: str | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Look for signs that an evaluation of DEFENSE fails; doubts become marks of its rows on the board.

    The exit code is 0 whatever is found. Interrupted, the same command goes on with the runs that are not done.

    \b
    robench diagnose --defense pgd-at
    robench diagnose --mi --defense mimir,mae-at,pgd-at,standard --samples 500
    """
    from robench.core.errors import UsageError
    from robench.diagnosis.diagnose import diagnose, grid
    from robench.evaluation.protocol import choose_protocol
    from robench.evaluation.run import Options, default_results
    from robench.reports.table import render

    if seeds is not None and not mi:
        raise UsageError("--seeds says how often --mi measures: add --mi, or leave it out")
    if checkpoint and len(defenses) > 1:
        raise UsageError(f"--checkpoint goes with one defense: {len(defenses)} were given")
    chosen = choose_protocol(protocol, dataset, threat, samples)
    console = Console()
    with Bar(Console(stderr=True)) as bar:
        options = Options(
            seed=seed,
            device=device,
            batch_size=batch_size,
            precision="fp32",
            data_dir=data_dir,
            results=results or default_results(),
            fresh=fresh,
            checkpoint=checkpoint,
            command=shlex.join(["robench", *sys.argv[1:]]),
            progress=bar.update,
            note=bar.note,
        )
        if mi:
            from robench.diagnosis import information

            if samples is None:
                chosen = replace(chosen, samples=information.SAMPLES)
            found = information.measure(
                defenses, chosen, list(range(seed, seed + (seeds or information.SEEDS))), options
            )
            made = [found.content]
            text = "".join(render(table, "text", console.width) + "\n" for table in information.grids(found))
        else:
            diagnoses = []
            for each in diagnose(defenses, chosen, knowledge, options):
                diagnoses.append(each)
                bar.done()
            made = [each.content for each in diagnoses]
            text = "\n".join(render(grid(each), "text", console.width) for each in diagnoses)
    if as_json:
        json.dump({"information" if mi else "diagnoses": made}, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    sys.stdout.write(text)

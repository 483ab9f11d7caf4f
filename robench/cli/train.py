"""robench train: make a card's checkpoint by its recipe."""

from typing import Any

import click
from rich.text import Text

from robench.cli import common
from robench.cli.completion import names_of
from robench.core.sanitize import plain_lines


@click.command("train")
@click.argument("card", shell_complete=names_of("recipe"))
@common.data_dir
@click.option("--output", metavar="FILE", help="File for the checkpoint.  [default: NAME.safetensors]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed to use instead of the recipe's.")
@common.device
@click.option("--csv", metavar="FILE", help="CSV file to log epochs to: stage, epoch, loss, lr, seconds.")
@click.option(
    "--workers", type=click.IntRange(min=0), help="Processes that read large datasets.  [default: auto]"
)
@click.option(
    "--pretrained", metavar="FILE", help="Pre-trained encoder to use instead of the recipe's pre-training."
)
@click.option(
    "--generated",
    metavar="FILE",
    help="Generated images (.npz with image and label), if the recipe mixes them in.",
)
@click.option("--fresh", is_flag=True, help="Start over, even if there is an interrupted training.")
@common.trust
def command(card: str, **options: Any) -> None:
    """Train the checkpoint of CARD (a name or a .toml file) by its recipe.

    Repeat the command to resume an interrupted training.

    \b
    robench train trades-digits --csv trades.csv
    torchrun --nproc-per-node 4 -m robench train CARD
    """
    from robench.defenses.resolution import find_card

    find_card(card)  # refuses an unknown name before torch is imported

    from robench.training import train
    from robench.training.distributed import ProcessGroup

    result = train(card, **options)
    if not ProcessGroup.from_environment().is_main:
        return
    common.console().print(Text(plain_lines(str(result))), soft_wrap=True)

"""Options that several commands take, worded once."""

import click

seed = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Decides every random number."
)
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
batch_size = click.option("--batch-size", default="auto", show_default=True, help="Images a network call.")
checkpoint = click.option("--checkpoint", help="Weights in place of the card's.")
data_dir = click.option("--data-dir", help="Where data sets with files lie.")
results = click.option("--results", help="Folder of all records.  [default: results]")
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, and nothing else.")

"""robench show: one thing that has a name, or one record."""

import click


@click.command("show")
def command(): ...

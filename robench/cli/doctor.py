"""robench doctor: what is installed, what is missing and how to get it."""

import click

from robench.cli import common
from robench.evaluation.options import default_results


@click.command("doctor")
@common.data_dir
@common.results
@click.option("--quick", is_flag=True, help="Leave out devices, datasets and checkpoints.")
def command(data_dir: str | None, results: str | None, quick: bool) -> None:
    """Show what is installed, what is missing and how to install it."""
    from robench.cli._examine import examine, report

    findings = examine(results or default_results(), data_dir, quick)
    common.console().print(report(findings), highlight=False)

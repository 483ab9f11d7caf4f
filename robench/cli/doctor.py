"""robench doctor: what is installed, what is missing and how to get it."""

import click
from rich.console import Console

from robench.cli import common
from robench.evaluation.run import default_results


@click.command("doctor")
@common.data_dir
@common.results
def command(data_dir: str | None, results: str | None) -> None:
    """Say what is installed, what is missing and how to get it."""
    from robench.cli._examine import examine, report

    findings = examine(results or default_results(), data_dir)
    Console().print(report(findings), highlight=False)

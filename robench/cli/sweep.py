"""robench sweep: one run for each value of a setting."""

from collections.abc import Callable
from pathlib import Path

import click

from robench.cli.running import GroupedCommand, Running, Selection, running, selecting, show_picture
from robench.core.errors import UsageError


@click.command("sweep", cls=GroupedCommand)
@click.argument("setting")
@selecting()
@running()
def command(setting: str, selection: Selection, running: Running) -> Callable[[], None]:
    """Run one defense and one attack for each value of SETTING, as a table and a plot.

    SETTING is NAME=START:STOP:STEP or NAME=A,B,...; NAME is an argument of the defense, attack.NAME one of the attacks.

    \b
    robench sweep sigma=0:140:20 --defense de3-digits --attack pgd
    robench sweep attack.steps=10,50,200 --defense mimir --attack apgd
    """
    return sweep(setting, selection, running)


def sweep(setting: str, selection: Selection, running: Running) -> Callable[[], None]:
    """Run every value; what is returned shows the result."""
    from robench.evaluation import sweep as sweeping

    requested = sweeping.Sweep.parse(setting)

    from robench.records.store import slug
    from robench.reports import sweep as report

    protocol, defenses, attacks = selection.chosen(), selection.defenses, selection.attacks
    if len(defenses) != 1 or len(attacks) > 1:
        raise UsageError("a sweep takes one defense and one attack")
    attack = next(iter(attacks), None)
    knowledge, options = selection.knowledge, running.options
    runs = list(sweeping.sweep(requested, defenses[0], attack, protocol, knowledge, options))
    if running.as_json:
        return lambda: running.print_json([record for _, record in runs])
    suite = runs[0][1].job.suite.name.partition("(")[0]
    values = slug(",".join(f"{value:g}" for value in requested.values))
    name = f"sweep-{slug(defenses[0])}-{slug(suite)}-{slug(requested.name)}-{values}.png"
    path = Path(running.options.results) / slug(protocol.name) / name
    return lambda: show_picture(report.grid(requested, runs), report.picture(requested, runs, path))

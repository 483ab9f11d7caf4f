"""robench curve: robust accuracy against the radius, the security curve."""

from collections.abc import Callable

import click

from robench.cli.running import GroupedCommand, Running, Selection, running, selecting, show_picture


@click.command("curve", cls=GroupedCommand)
@click.argument("radii")
@selecting()
@running()
def command(radii: str, selection: Selection, running: Running) -> Callable[[], None]:
    """Plot the security curve: robust accuracy against the radius, at RADII (START:STOP:COUNT).

    A radius in --threat is ignored; a norm or a transformation alone is enough.

    \b
    robench curve 0:16/255:9 --defense mimir
    robench curve 0:2:5 --defense mimir,pgd-at --attack ddn --threat L2
    """
    return curve(radii, selection, running)


def curve(radii: str, selection: Selection, running: Running) -> Callable[[], None]:
    """Run every radius; what is returned shows the result."""
    from robench.evaluation import security_curve

    over = security_curve.Radii.parse(radii)

    from robench.reports import security_curve as report

    levels = security_curve.protocols(
        over, selection.protocol, selection.dataset, selection.threat, selection.samples
    )
    records = list(
        security_curve.runs(
            selection.defenses, selection.attacks, levels, selection.knowledge, running.options
        )
    )
    curves = report.curves(over.texts, records)
    picture = report.picture(curves, running.options.results)
    if running.as_json:
        content = [curve.to_dict() for curve in curves]
        return lambda: running.print_json(records, curves=content, picture=str(picture))
    return lambda: show_picture(report.grid(curves), picture)

"""robench plot: plots made from records alone."""

from pathlib import Path

import click

from robench.cli import common
from robench.cli.common import names
from robench.cli.completion import folders, names_among
from robench.evaluation.options import default_results
from robench.reports.plots import PLOTS, RENAMED
from robench.reports.plots.style import FORMATS

ALL = "all"
_KINDS = "\n".join(f"{name:<16} {plot.shows}" for name, plot in PLOTS.items())


@click.command(
    "plot",
    help=f"""Draw plots of a KIND from the records in the RESULTS folders (default: results).

\b
{_KINDS}
all              every plot that there are records for

\b
robench plot scatter
robench plot all results/shipped --format svg,pdf --output figures""",
)
@click.argument("kind", shell_complete=names_among((*PLOTS, ALL)))
@click.argument("results", nargs=-1, type=common.Place(), shell_complete=folders)
@click.option(
    "--format",
    "formats",
    multiple=True,
    callback=names,
    help=f"One or more of {', '.join(FORMATS)}.  [default: png]",
)
@click.option("--output", metavar="DIR", default="plots", show_default=True, help="Folder of the plots.")
def command(kind: str, results: tuple[str, ...], formats: list[str], output: str) -> None:
    from robench.core.formatting import location, one_of
    from robench.records.collection import collect
    from robench.reports.plots import find_plot
    from robench.reports.plots.style import save

    if kind in RENAMED:
        common.note(f'the plot "{kind}" is now called "{RENAMED[kind]}"; the old name is deprecated')
        kind = RENAMED[kind]
    chosen = PLOTS if kind == ALL else {kind: find_plot(kind)}
    for form in formats or ["png"]:
        one_of("format", form, FORMATS)
    records = collect(results or (str(default_results()),))
    for name, plot in chosen.items():
        figures = plot.draw(records)
        if not figures:
            common.say(f"No records for {name} ({plot.shows}): {plot.needs}", "dim")
        for stem, figure in figures.items():
            for form in formats or ["png"]:
                common.say(location(save(figure, Path(output) / f"{name}-{stem}.{form}")))
    common.report(records.left_out, len(records))

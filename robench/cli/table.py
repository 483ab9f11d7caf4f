"""robench table: a paper's own tables, from records alone."""

import sys

import click

from robench.cli import common
from robench.cli.completion import folders, names_of
from robench.core.errors import UsageError
from robench.evaluation.options import default_results
from robench.reports.table import FORMATS


@click.command("table")
@click.argument("paper", required=False, shell_complete=names_of("paper"))
@click.argument("results", nargs=-1, type=common.Place(), shell_complete=folders)
@click.option("--suite", help="Suite whose records the table shows, such as purifier-cheap.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True)
@common.trust
def command(paper: str | None, results: tuple[str, ...], suite: str | None, form: str) -> None:
    """Print the tables of PAPER with our figures from the records in the RESULTS folders (default: results).

    \b
    mimir, maep, de3  the tables of these papers, with published figures and ours
    purifiers         each purifier under increasingly knowledgeable attackers
    diffbreak         randomized purifiers: worst draw and majority vote
    unforeseen        each defense under transformations and other norms
    transfer          purifiers trained on one dataset, tested on another
    study             one adversarial training after four kinds of pre-training

    PAPER can also be a TOML file of your own, like those in papers/. The notes below a table name the commands that
    fill its empty cells. Bounds that robench certify proved for a paper's defenses follow its tables.

    \b
    robench run --defense maep-digits --attack purifier
    robench table purifiers
    robench table mimir --format latex
    """
    from robench.reports.paper_files import find_paper, papers

    if paper is None:
        raise UsageError(f"which table? {', '.join(papers())}; robench list tables describes them")
    chosen = find_paper(paper)  # before the records are read, which takes seconds

    from robench.records.collection import collect
    from robench.reports.papers import text

    roots, width = results or (str(default_results()),), common.console().width
    records = collect(roots)
    sys.stdout.write(text(chosen, records, form, suite, width))
    common.report(records.left_out, len(records))

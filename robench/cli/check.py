"""robench check: is this checkpoint still as robust as it was?"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from robench.cli import common
from robench.cli.completion import folders, names_of
from robench.core.errors import CheckFailed, RobenchError
from robench.core.sanitize import plain

if TYPE_CHECKING:
    from robench.verification.regression import Verdict


@click.command("check")
@click.argument("baselines", nargs=-1, shell_complete=folders, required=True)
@click.option(
    "--defense",
    shell_complete=names_of("defense"),
    help="Defense to check.  [default: the one that the record names]",
)
@common.checkpoint
@click.option("--margin", type=float, help="Smallest drop in robust accuracy to detect.  [default: 0.03]")
@click.option("--miss", type=float, help="Largest probability of missing such a drop.  [default: 0.05]")
@click.option(
    "--false-alarm",
    type=float,
    help="Largest probability of failing a defense that lost no more than the tolerance (0.005).  [default: 0.05]",
)
@click.option("--junit", metavar="FILE", help="Write a JUnit report to this file.")
@click.option("--summary", metavar="FILE", help="Write a Markdown report to this file.")
@common.data_dir
@common.device
@common.trust
def command(
    baselines: tuple[str, ...],
    defense: str | None,
    checkpoint: str | None,
    margin: float | None,
    miss: float | None,
    false_alarm: float | None,
    junit: str | None,
    summary: str | None,
    data_dir: str | None,
    device: str,
) -> None:
    """Compare defenses with recorded BASELINES: records, or TOML files that list them.

    The defense first classifies the record's adversarial examples, which takes seconds. Then images that were robust
    are attacked again, as few as a sequential test needs. Exit code 1 if a defense is less robust.

    \b
    robench check results/digits-linf/mimir-digits/autoattack
    robench check baseline.toml --junit report.xml
    """
    from robench.core.io import disk_errors, write_file
    from robench.verification import ci_report
    from robench.verification.baselines import Baseline, read_baselines

    given = {"margin": margin, "miss": miss, "false_alarm": false_alarm, "checkpoint": checkpoint}
    given = {name: value for name, value in given.items() if value is not None}
    console = common.console()
    listed: list[Baseline] = []
    errors: list[tuple[str, RobenchError]] = []
    for path in baselines:
        with common.collected(errors, path, alone=len(baselines) == 1):
            listed += read_baselines(path)
    verdicts: list[Verdict] = []
    seconds: list[float] = []
    for baseline in listed:
        # Imports torch, which reading the files of baselines does not need.
        from robench.verification.regression import Options, check

        options = Options(device=device, data_dir=data_dir, note=common.note)
        options = replace(options, **baseline.settings | given)
        begun = time.monotonic()
        with common.collected(errors, str(baseline.folder), alone=len(listed) == len(baselines) == 1):
            verdict = check(baseline.folder, defense or baseline.defense, options)
            verdicts.append(verdict)
            seconds.append(time.monotonic() - begun)
            common.say(f"{verdict.defense} against {verdict.baseline}", "bold")
            for step in verdict.steps:
                mark = ("holds", "green") if step.held else ("FAILS", "bold red")
                line = Text.assemble("  ", mark, plain(f"  {step.name}: {step.detail}"))
                console.print(line, soft_wrap=True)
            common.say(f"  {ci_report.cost(verdict)}, {seconds[-1]:.1f} s", "dim")
    if junit:
        write_file(Path(junit), ci_report.junit(verdicts, seconds, errors))
    if summary:
        write_file(Path(summary), ci_report.summary(verdicts, errors).encode())
    if os.environ.get("GITHUB_ACTIONS"):
        sys.stdout.write(ci_report.annotations(verdicts, errors))
        if page := os.environ.get("GITHUB_STEP_SUMMARY"):
            with (
                disk_errors(Path(page), "GITHUB_STEP_SUMMARY"),
                Path(page).open("a", encoding="utf-8") as file,
            ):
                file.write(ci_report.summary(verdicts, errors))
    failed = [f"{verdict.defense}: {verdict.reason}" for verdict in verdicts if not verdict.held]
    if failed:
        message = f"{len(failed)} of {len(verdicts)} checks failed: {'; '.join(failed)}"
        errors.append(("checks", CheckFailed(message)))
    common.raise_worst(errors)

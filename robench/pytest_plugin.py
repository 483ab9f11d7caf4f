"""Pytest plugin: `pytest --robench baseline.toml` runs each check as a separate test.

Pytest loads the plugin in every environment that has robench installed, so it imports nothing large until a check runs.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


class Failed(Exception):
    """A failed check."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("robench")
    group.addoption(
        "--robench",
        action="append",
        default=[],
        metavar="BASELINE",
        help="check defenses against a record of robench, or the records listed in a TOML file",
    )
    group.addoption(
        "--robench-trust", action="store_true", help="load the code, models and paths named in baselines"
    )
    group.addoption("--robench-data-dir", metavar="DIR", help="folder with the datasets of robench")


# First, so that -k and other plugins can select these items.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    for path in config.getoption("--robench") or ():
        checks = Baselines.from_parent(session, path=Path(path).absolute()).collect()
        # pytest counts the items of these reports: "collected 1 item".
        config.hook.pytest_collectreport(report=pytest.CollectReport(path, "passed", None, [*checks]))
        items += checks


class Baselines(pytest.File):
    """A file of baselines, or the folder of a record."""

    def collect(self) -> list["Check"]:
        from robench.core.errors import RobenchError
        from robench.verification.baselines import read_baselines

        try:
            baselines = read_baselines(self.path)
        except RobenchError as error:
            raise pytest.UsageError(str(error)) from error
        names = unique(label(baseline.folder, baseline.defense) for baseline in baselines)
        pairs = zip(names, baselines, strict=True)
        return [Check.from_parent(self, name=name, baseline=baseline) for name, baseline in pairs]


def label(folder: Path, defense: str | None) -> str:
    """The id of a check: the defense, and the suite and threat model of the baseline."""
    try:
        record = json.loads((folder / "record.json").read_bytes())
        run = f"{record['suite']['name']}-{record['threat']}"
        return f"{defense or record['defense']['name']}[{run}]"
    except (OSError, ValueError, KeyError, TypeError):
        # The check reports what is wrong with the record.
        return f"{defense or 'baseline'}[{folder.name}]"


def unique(names: Iterator[str]) -> list[str]:
    """Append a number to repeated names."""
    counts: dict[str, int] = {}
    numbered = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        numbered.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return numbered


class Line:
    """A failure as one line in the report, the short summary and JUnit."""

    def __init__(self, text: str):
        self.text = text
        self.reprcrash = SimpleNamespace(message=text)

    def toterminal(self, tw: Any) -> None:
        tw.line(self.text, red=True)

    def __str__(self) -> str:
        return self.text


class Check(pytest.Item):
    """The check of one baseline."""

    def __init__(self, *, baseline: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self.baseline = baseline

    def runtest(self) -> None:
        from robench.core.trust import trusting
        from robench.verification.regression import Options, check

        data_dir = self.config.getoption("--robench-data-dir")
        options = Options(data_dir=data_dir, **self.baseline.settings)
        trust = trusting(self._print) if self.config.getoption("--robench-trust") else nullcontext()
        with trust:
            verdict = check(self.baseline.folder, self.baseline.defense, options)
        for step in verdict.steps:
            self.add_report_section("call", "robench", f"{step.name}: {step.detail}")
        if not verdict.held:
            raise Failed(verdict.reason)

    def _print(self, line: str) -> None:
        capture = self.config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            print(f"\nrobench: {line}", file=sys.stderr)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        from robench.core.errors import RobenchError

        if isinstance(excinfo.value, Failed | RobenchError):
            return Line(str(excinfo.value))
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"robench: {self.name}"

"""A pytest plugin: `pytest --robench baseline.toml` runs each check as a test of its own.

It is loaded by every pytest where robench is installed, so it imports nothing heavy until a check runs.
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
    """A check that did not hold."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("robench")
    group.addoption(
        "--robench",
        action="append",
        default=[],
        metavar="BASELINE",
        help="a record of robench, or a TOML file that lists several: check defenses against them",
    )
    group.addoption(
        "--robench-trust",
        action="store_true",
        help="load code, models and paths that robench's baselines name",
    )
    group.addoption("--robench-data-dir", metavar="DIR", help="folder of the data sets that robench reads")


# First, so that -k and other plugins choose among these items too.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    for path in config.getoption("--robench") or ():
        items += Baselines.from_parent(session, path=Path(path).absolute()).collect()


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
    """The id of a check: its defense, and suite and threat model of the baseline."""
    try:
        record = json.loads((folder / "record.json").read_bytes())
        run = f"{record['suite']['name']}-{record['threat']}"
        return f"{defense or record['defense']['name']}[{run}]"
    except (OSError, ValueError, KeyError, TypeError):
        # The check itself says what is wrong with the record.
        return f"{defense or 'baseline'}[{folder.name}]"


def unique(names: Iterator[str]) -> list[str]:
    """The names, with a number behind those that come again."""
    seen: dict[str, int] = {}
    numbered = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        numbered.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return numbered


class Line:
    """A failure in one line: in the report, in the short summary and in JUnit."""

    def __init__(self, text: str):
        self.text = text
        self.reprcrash = SimpleNamespace(message=text)

    def toterminal(self, tw: Any) -> None:
        tw.line(self.text, red=True)

    def __str__(self) -> str:
        return self.text


class Check(pytest.Item):
    """One baseline."""

    def __init__(self, *, baseline: Any, **rest: Any):
        super().__init__(**rest)
        self.baseline = baseline

    def runtest(self) -> None:
        from robench.core.trust import trusting
        from robench.verification.regression import Options, check

        data_dir = self.config.getoption("--robench-data-dir")
        options = Options(data_dir=data_dir, **self.baseline.settings)
        trust = trusting(self._say) if self.config.getoption("--robench-trust") else nullcontext()
        with trust:
            verdict = check(self.baseline.folder, self.baseline.defense, options)
        for step in verdict.steps:
            self.add_report_section("call", "robench", f"{step.name}: {step.detail}")
        if not verdict.held:
            raise Failed(verdict.reason)

    def _say(self, line: str) -> None:
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

"""A pytest plugin: `pytest --robench baseline.toml` runs each check as a test of its own.

It is loaded by every pytest where robench is installed, so it imports nothing heavy until a check runs.
"""

import sys
from contextlib import nullcontext
from pathlib import Path
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
    group.addoption("--robench-data-dir", metavar="DIR", help="where robench finds data sets with files")


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    from robench.core.errors import RobenchError
    from robench.verification.baselines import read_baselines

    for path in config.getoption("--robench") or ():
        try:
            baselines = read_baselines(path)
        except RobenchError as error:
            raise pytest.UsageError(str(error)) from error
        for baseline in baselines:
            name = f"{baseline.defense or 'baseline'} against {baseline.folder}"
            items.append(Check.from_parent(session, name=name, baseline=baseline))


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
            raise Failed("; ".join(step.detail for step in verdict.steps if not step.held))

    def _say(self, line: str) -> None:
        capture = self.config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            print(f"\nrobench: {line}", file=sys.stderr)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        from robench.core.errors import RobenchError

        if isinstance(excinfo.value, Failed | RobenchError):
            return f"{self.name}: {excinfo.value}"
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, None, str]:
        return Path(self.baseline.folder), None, f"robench: {self.name}"

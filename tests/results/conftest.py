"""Fixtures: a run, and runs with changes, under the test's own folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from robench import content
from robench.content import Suite
from tests.results.fabricate import SPECS, Run, make_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path)


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., Run]:
    return lambda **changes: make_run(tmp_path, **changes)


@pytest.fixture
def short_autoattack(monkeypatch):
    """What is fabricated under the name autoattack stands for itself."""
    monkeypatch.setitem(content.suites(), "autoattack", Suite("autoattack", list(SPECS)))

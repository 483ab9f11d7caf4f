"""Shared fixtures.

The process that only distributes tests reads this file too, so what takes time to import is imported by the fixtures.
"""

import gc
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.fabricate import Run

# No example is slow by itself: on a busy machine any may take longer than Hypothesis allows.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


def pytest_collection_finish():
    """What is imported by now stays: no collection of garbage looks at it again, here or in forked processes."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny tensors are faster on one thread, and parallel tests interfere less."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Tests must not use caches of the user, nor write to them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_waiting():
    """Power does not fail here and the checkout does not change: skip fsync, and ask git once."""
    from robench.records import provenance

    state = cache(provenance.git_state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(provenance, "git_state", lambda: state() and {**state()})
        yield


@pytest.fixture
def run(tmp_path: Path) -> "Run":
    """A fabricated run in the folder of the test."""
    from tests.fabricate import make_run

    return make_run(tmp_path)


@pytest.fixture
def runs(tmp_path: Path) -> "Callable[..., Run]":
    from tests.fabricate import make_run

    return lambda **changes: make_run(tmp_path, **changes)


@pytest.fixture
def short_autoattack(monkeypatch):
    """Fabricated records named autoattack are used as they are."""
    from robench.catalog import Suite, suites
    from tests.fabricate import SPECS

    monkeypatch.setitem(suites(), "autoattack", Suite("autoattack", list(SPECS)))

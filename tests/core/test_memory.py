"""Memory is kept between steps and returned at the end."""

import sys

import pytest
import torch

from robench.core import memory

SIZE, COUNT, ROUNDS = 1 << 20, 16, 20


def page_faults():
    """Pages that the system had to clear for repeated large blocks."""
    resource = pytest.importorskip("resource")
    faults = []
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(SIZE) for _ in range(COUNT)]
        del blocks
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return sum(faults[ROUNDS // 2 :])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is adjusted")
def test_freed_blocks_are_used_again_without_new_pages(monkeypatch):
    for name in memory._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    returned = page_faults()
    with memory.keeping_pages():
        kept = page_faults()
    assert kept <= returned // 10


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "_function", lambda name: None)
    with memory.keeping_pages():
        memory.give_back()


def test_a_setting_of_the_user_takes_precedence(monkeypatch):
    called = []
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    monkeypatch.setattr(memory, "_function", lambda name: lambda *values: called.append(name))
    with memory.keeping_pages():
        pass
    assert not called

"""The script that checks a GPU, as a miniature on the CPU: every line but the calls of CUDA."""

import importlib
import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "perf"
CHECKS = (
    "tests",
    "training",
    "bf16",
    "judge",
    "deterministic",
    "compiled",
    "memory",
    "autoattack",
    "devices",
)


@pytest.fixture
def gpu(monkeypatch):
    # The processes of the script import it by its name.
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module("gpu")
    for name in ("gpu", "gpu_checks"):
        del sys.modules[name]


@pytest.fixture
def table(gpu):
    return gpu.Table(1000.0)


def bench(gpu):
    return gpu.Bench(torch.device("cpu"), 8, 1.0)


@pytest.mark.slow
def test_a_miniature_tries_every_check(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--n", "8", "--minutes", "1"])
    code = gpu.main()
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert code == 0, out
    assert {line.split()[1] for line in rows[1:]} == set(CHECKS) and len(rows) == 1 + 2 + 2 * 7
    assert "same verdicts" in out and "of a search step" in out and "2 devices" in out


def test_a_failed_check_is_a_row_and_an_exit_code(gpu, table, monkeypatch, capsys):
    def tests(bench, limit):
        raise AssertionError("only 3 of 4\nand more")

    monkeypatch.setattr(gpu, "tests", tests)
    monkeypatch.setattr(gpu, "devices", tests)
    monkeypatch.setattr(gpu, "of_network", lambda *given: None)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu"])
    assert gpu.main() == 1
    out = capsys.readouterr().out
    assert (
        "| tests          | -          | FAILED: AssertionError: only 3 of 4\n" in out and "and more" in out
    )


def odd(pipe, bench, network, names, file):
    """Checks of which one breaks, one dies and one hangs; the target of a process."""
    for name in names:
        if name == "judge":
            os._exit(7)
        if name == "compiled":
            time.sleep(600)
        pipe.send((f"{name} done", False) if name != "bf16" else ("FAILED: RuntimeError: CUDA error", True))


def test_a_check_that_fails_dies_or_hangs_costs_no_other(gpu, table, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "_LIMITS", dict.fromkeys(CHECKS, 0.001))
    monkeypatch.setattr(gpu, "_START", 60.0)
    # Forked processes start at once.
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(gpu.multiprocessing, "get_context", lambda kind: fork)
    gpu.of_network(table, bench(gpu), "net", tmp_path, odd)
    assert [row[2] for row in table.rows] == [
        "training done",
        "FAILED: RuntimeError: CUDA error",
        "FAILED: the process ended with exit code 7",
        "deterministic done",
        "FAILED: took longer than 1 s",
        "memory done",
        "autoattack done",
    ]
    assert not multiprocessing.active_children()
    # Without a network no other check is tried.
    table.rows.clear()
    gpu.of_network(table, bench(gpu), "net", tmp_path, fails)
    assert [failed for *_, failed in table.rows] == [True] + [False] * 6


def fails(pipe, bench, network, names, file):
    pipe.send(("FAILED", True))


def test_what_the_time_does_not_suffice_for_is_named(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--minutes", "0"])
    assert gpu.main() == 0
    assert capsys.readouterr().out.count("not tried: no time left") == 2 * (2 + 2 * 7)


def test_a_command_that_hangs_ends_with_what_it_has_started(gpu):
    code, out = gpu.devices.__globals__["call"](["sh", "-c", "echo said; sleep 60 & wait"], 1.0)
    assert code is None and out == "said\n"


def test_without_cuda_it_says_how_to_try_it(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main() == 3 and "--device cpu" in capsys.readouterr().out


def test_the_networks_have_the_shapes_of_the_papers(gpu):
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in make().parameters()) for make in gpu.networks(False).values()]
    assert sizes == [pytest.approx(21.3e6, rel=0.02), pytest.approx(36.5e6, rel=0.01)]

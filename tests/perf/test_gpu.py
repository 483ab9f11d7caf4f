"""The script that checks a GPU, as a miniature on the CPU: every line but the calls of CUDA."""

import functools
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "perf" / "gpu.py"
CHECKS = ("tests", "bf16", "judge", "deterministic", "compiled", "memory", "autoattack", "devices")


@pytest.fixture
def gpu(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_miniature_tries_every_check(gpu, monkeypatch, capsys):
    # Without the compiler, which takes a minute.
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--n", "8", "--minutes", "0.1"])
    code = gpu.main()
    out = capsys.readouterr().out
    table = [line for line in out.splitlines() if line.startswith("| ")]
    assert code == 0, out
    assert {line.split()[1] for line in table[1:]} == set(CHECKS) and len(table) == 1 + 2 + 2 * 6
    assert "same verdicts" in out and "of a search step" in out and "2 devices" in out


def test_a_failed_check_is_a_row_and_an_exit_code(gpu, monkeypatch, capsys):
    bench = gpu.Bench(torch.device("cpu"), 8, 1.0, [], [])

    def fails():
        raise AssertionError("only 3 of 4\nand more")

    assert gpu._row(bench, "bf16", "net", fails) == 1
    assert bench.rows == [("bf16", "net", "FAILED: AssertionError: only 3 of 4")]
    assert "and more" in capsys.readouterr().out


def test_without_cuda_it_says_how_to_try_it(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main() == 3 and "--device cpu" in capsys.readouterr().out


def test_the_networks_have_the_shapes_of_the_papers(gpu):
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in network.parameters())
            for network in (gpu.vit(384, 12, 6), gpu.wide_resnet(28, 10))
        ]
    assert sizes == [pytest.approx(21.3e6, rel=0.02), pytest.approx(36.5e6, rel=0.01)]

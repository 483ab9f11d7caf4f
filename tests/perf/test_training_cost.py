import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "perf" / "training_cost.py"


@pytest.mark.slow
def test_a_tiny_network_is_measured_and_projected(tmp_path, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("training_cost", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "training_cost", module)
    spec.loader.exec_module(module)
    network = "vit(image_size=16, patch_size=4, width=64, depth=4, heads=4, num_classes=10)"
    output = tmp_path / "cost.jsonl"
    given = ["--network", network, "--device", "cpu", "--batch-size", "8", "--rounds", "3"]
    monkeypatch.setattr(sys, "argv", ["training_cost.py", *given, "--output", str(output)])
    module.main()
    cost = json.loads(output.read_text())
    seconds, flops = cost["seconds"], cost["flops"]
    assert all(value > 0 for value in seconds.values())
    # A PGD-k step is k passes without and one with a gradient of the weights, forward, backward: 2 k + 3 parts.
    assert flops["PGD-3"] / flops["PGD-1"] == pytest.approx(9 / 5, rel=0.05)
    hours = 1_281_167 / 8 / 3600
    ours = (800 * seconds["MIMIR"] + 100 * seconds["PGD-1"]) * hours
    theirs = 300 * seconds["PGD-3"] * hours
    assert cost["hours"] == pytest.approx([ours, theirs])
    assert cost["ratio"] == pytest.approx(theirs / ours)
    said = capsys.readouterr().out
    assert f"ratio {cost['ratio']:.2f} by time" in said and "451.39 h / 123.76 h = 3.65" in said

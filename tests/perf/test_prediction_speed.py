"""Speeds of predictions, on a clock that the defenses themselves advance."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "perf"))
    sys.modules.pop("prediction_speed", None)
    import prediction_speed

    return prediction_speed


def test_speeds_and_ratios_are_medians_over_rounds_in_which_the_defenses_take_turns(speed, monkeypatch):
    now, called = [0.0], []
    monkeypatch.setattr(speed, "time", SimpleNamespace(process_time=lambda: now[0], perf_counter=None))

    def taking(name, forward, gradient):
        def defense(x):
            called.append((name, x.requires_grad))
            # The first round of each kind, which warms up, takes much longer.
            factor = 100 if called.count(called[-1]) == 1 else 1
            now[0] += factor * (gradient if x.requires_grad else forward)
            return x * 1.0

        return defense

    x, y = torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)
    a, b = speed.measure(["a", "b"], [taking("a", 1.0, 2.0), taking("b", 4.0, 16.0)], x, y, rounds=3)
    assert called == 4 * [("a", False), ("a", True), ("b", False), ("b", True)]
    assert (a.forward, a.gradient, a.forward_ratio, a.gradient_ratio) == (4.0, 2.0, 1.0, 1.0)
    assert (b.forward, b.gradient, b.forward_ratio, b.gradient_ratio) == (1.0, 0.25, 4.0, 8.0)

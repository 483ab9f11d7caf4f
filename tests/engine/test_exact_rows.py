"""Rows whose search and judge disagree go on in fp32, and are counted."""

import pytest
import torch
from torch import nn

from robench.attacks.build import build_attacks
from robench.engine.attack_context import Samples
from robench.engine.checkpoint import FolderStore
from robench.engine.run import Run
from robench.engine.setup import Setup
from robench.engine.supply import Supply
from robench.engine.workers import Processes
from robench.threats.threat import Threat
from tests.models import images, small_net

N = 12


class Deceptive(nn.Module):
    """A network that in bf16 takes every image of the first half of ids for one of another class."""

    def __init__(self, shift=100.0):
        super().__init__()
        self.model, self.shift = small_net(), shift
        x = images(N)
        y = self.model(x).argmax(1)
        self.register_buffer("wrong", (y + 1) % 10)
        self.register_buffer("mean", x.mean((1, 2, 3)))

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            logits = self.model(x)
        if not torch.is_autocast_enabled("cpu"):
            return logits
        nearest = (x.detach().mean((1, 2, 3))[:, None] - self.mean).abs().argmin(1)
        extra = torch.zeros_like(logits).scatter(1, self.wrong[nearest][:, None], self.shift)
        return logits + extra * (nearest < N // 2)[:, None]


def run(spec, threat="Linf:0.02", precision="bf16", shift=100.0, **options):
    model, x = Deceptive(shift), images(N)
    parsed = Threat.parse(threat)
    setup = Setup(model, 0, torch.device("cpu"), 8, precision=precision)
    samples = Samples(x, model.model(x).argmax(1), torch.arange(N))
    return Run(setup, build_attacks([spec], parsed), samples, parsed, **options).outcome()


@pytest.mark.parametrize(
    ("spec", "threat"),
    [
        ("apgd(steps=15)", "Linf:0.02"),
        ('apgd(steps=8, loss="dlr", targets=3)', "Linf:0.02"),
        ("fab(steps=8)", "Linf:0.05"),
        ("fab(steps=5, targets=3)", "L2:0.4"),
        ("square(queries=60)", "Linf:0.05"),
        ("fmn(steps=8)", "L2:0.4"),
    ],
)
def test_deceived_rows_find_what_a_search_in_fp32_finds(spec, threat):
    plain, deceived = run(spec, threat, "fp32"), run(spec, threat)
    assert plain.search == {} and int(plain.robust.sum()) < N
    assert deceived.search["disagreements"] >= N // 3
    assert torch.equal(plain.robust, deceived.robust)


def test_rows_that_never_disagree_are_not_counted():
    outcome = run("apgd(steps=6)", shift=0.0)
    assert outcome.search == {"compiled": False, "disagreements": 0, "repeats": "bits"}
    assert torch.equal(outcome.robust, run("apgd(steps=6)", precision="fp32").robust)


@pytest.mark.parametrize("spec", ['apgd(steps=5, loss="dlr", targets=3)', "pgd(steps=4, restarts=3)"])
def test_superfluous_rows_are_not_counted(spec, monkeypatch):
    found = [run(spec), *(run(spec, executor=Processes(1, shares)) for shares in (2, 5))]
    # A row waits until no lower rank of its image runs.
    monkeypatch.setattr(Supply, "_is_premature", lambda *arguments: True)
    strict = run(spec)
    assert strict.search["disagreements"] > 0
    assert all(outcome.search == strict.search for outcome in found)


def test_an_interrupted_run_knows_which_rows_go_on_in_fp32(tmp_path, monkeypatch):
    monkeypatch.setattr("robench.engine.run._SHOW_EVERY", 0)
    whole, calls = run("apgd(steps=10)", "Linf:0.004"), 0

    def stop(progress):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("apgd(steps=10)", "Linf:0.004", store=FolderStore(tmp_path, "key"), progress=stop)
    resumed = run("apgd(steps=10)", "Linf:0.004", store=FolderStore(tmp_path, "key"))
    assert torch.equal(whole.x_adv, resumed.x_adv) and whole.search == resumed.search

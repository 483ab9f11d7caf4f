"""Defenses built to be caught, each with its mark; honest ones with none."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robench.attacks._base import Answer
from robench.attacks.build import build_attacks
from robench.attacks.pgd import PGD
from robench.core import registry
from robench.data import load_dataset
from robench.defenses import load_defense
from robench.engine import result_warnings
from robench.engine.ahead import Ahead
from robench.engine.host import on_host
from robench.engine.loss_monitor import LossMonitor, LossStats
from robench.engine.outcome import AttackCost
from robench.engine.supply import Supply
from robench.evaluation.attack import attack
from robench.threats.threat import Threat
from tests.combinations import first_only
from tests.engine.caught import CAUGHT
from tests.engine.runs import run_of
from tests.engine.test_promises import interrupted
from tests.models import images, small_net


@pytest.mark.parametrize("name", CAUGHT)
def test_what_was_built_to_be_caught_is_marked(name):
    model, code = CAUGHT[name]
    x = images(32)
    with torch.no_grad():
        y = small_net()(x).argmax(1) if name == "noise" else model(x).nan_to_num(-1).argmax(1)
    result = attack("pgd(steps=20, step_size=0.01)", model.eval(), x, y, threat="Linf:0.02", batch_size=16)
    assert code in [mark.code for mark in result.health]


class Outside(PGD):
    """PGD that forgets to stay in the ball."""

    def ask(self, problem, rows, state):
        ask = super().ask(problem, rows, state)
        return replace(ask, x=(rows.x + 20 * (ask.x - rows.x)).clamp(0, 1))


class Nearest(Outside):
    """The same, but as an attack that searches for the nearest point."""

    minimum_norm = True


@pytest.mark.parametrize(("kind", "warns"), [(Outside, True), (Nearest, False), (PGD, False)])
def test_an_attack_that_fools_outside_the_threat_model_is_marked(kind, warns, monkeypatch):
    monkeypatch.setitem(registry.attacks._builders, "pgd", kind)
    model, x = small_net(), images(6)
    result = attack("pgd(steps=2)", model, x, model(x).argmax(1), threat="Linf:0.01", workers=1)
    (text,) = [mark.text for mark in result.warnings if mark.code == "outside-threat"] or [""]
    assert text.startswith("pgd(steps=2) fooled 6 rows outside the threat model") == warns
    assert not warns or result.robust.all()


@pytest.mark.parametrize(
    "name", first_only(1, ["mimir-digits", "pgd-at-digits", "mae-at-digits", "standard-digits"])
)
def test_an_honest_defense_has_no_mark(name):
    data = load_dataset("digits", "test", 40)
    result = attack(
        "apgd(steps=20)+pgd(steps=20)", load_defense(name), data.x, data.y, threat="Linf:0.1", batch_size=40
    )
    assert result.health == []


def test_losses_are_followed_lane_by_lane():
    watch, off = LossMonitor(3, ascends=True), torch.tensor([True, True, False])
    grad = torch.ones(3, 1, 1, 1)
    for step, losses in enumerate([(1.0, 1.0, 9.0), (2.0, 0.5, 9.0), (1.2, 0.9, 9.0)]):
        answer = Answer(torch.zeros(3), torch.zeros(3, 2), torch.tensor(losses), grad)
        watch.note(off, torch.tensor([step == 0] * 3), on_host(**watch.facts(answer, step == 0)))
    ended = [LossStats(*watch.end(lane, failed=True).tolist()) for lane in range(3)]
    assert ended[0] == LossStats(gradients=1, fallen=1, ended=1)
    assert ended[1] == LossStats(gradients=1, flat=1, ended=1)
    assert LossStats(*watch.end(1, failed=False).tolist()) == LossStats(gradients=1)
    again = LossMonitor(3, ascends=True)
    again.load(watch.dump())
    assert all((again.end(lane, True) == watch.end(lane, True)).all() for lane in range(3))
    again.start(torch.tensor([0, 2]))
    assert again.counts.any(1).tolist() == [False, True, False]


def test_what_still_rises_in_the_last_tenth_is_counted():
    watch, both = LossMonitor(2, ascends=True, steps=10), torch.tensor([True, True])
    # One rises to the end; the other has all but a fiftieth of its rise before the last step.
    for step in range(11):
        losses = torch.tensor([float(step), 1.0 if step == 10 else 0.98 * min(step, 5) / 5])
        answer = Answer(torch.zeros(2), torch.zeros(2, 2), losses, torch.ones(2, 1, 1, 1))
        watch.note(both, torch.tensor([step == 0] * 2), on_host(**watch.facts(answer, step == 0)))
    ended = [LossStats(*watch.end(lane, failed=True).tolist()) for lane in range(2)]
    assert [stats.undone for stats in ended] == [1, 0]


def test_an_attack_that_creeps_is_marked():
    data = load_dataset("digits", "test", 24)
    model = load_defense("pgd-at-digits")
    found = [
        [mark.code for mark in attack(spec, model, data.x, data.y, threat="Linf:0.1", batch_size=24).health]
        for spec in ("pgd(steps=20, step_size=0.002, random_start=False)", "pgd(steps=20)")
    ]
    assert found == [["more-steps-help"], []]


@pytest.mark.parametrize(
    ("specs", "threat", "survivors", "code"),
    [
        (["apgd", "square"], "Linf:0.1", [60, 58], "square-beats-white-box"),
        (["apgd", "spsa"], "Linf:0.1", [60, 58], "spsa-beats-white-box"),
        (["fab", "apgd", "nes"], "L2:0.1", [70, 60, 58], "nes-beats-white-box"),
        (["apgd", "hopskipjump"], "L2:0.1", [60, 58], "hopskipjump-beats-white-box"),
        (["sigma-zero", "sparse-rs"], "L0:9", [60, 39], "sparse-rs-beats-white-box"),
        # On networks with sound gradients: one image, and in L0 some.
        (["apgd", "nes"], "Linf:0.1", [60, 59], ""),
        (["sigma-zero", "sparse-rs"], "L0:9", [60, 51], ""),
        # There is no white-box attack before, or the attack has gradients.
        (["square", "nes"], "Linf:0.1", [60, 40], ""),
        (["apgd", "fab"], "Linf:0.1", [60, 40], ""),
        # The worst of a grid beats gradients over three parameters on any network.
        (["pgd", "grid"], "spatial:0.3", [60, 40], ""),
    ],
)
def test_which_wins_of_an_attack_without_gradients_are_marked(specs, threat, survivors, code):
    built = build_attacks(specs, Threat.parse(threat))
    costs = [AttackCost(spec, 100, left, 0, 0, 0.0) for (spec, _), left in zip(built, survivors, strict=True)]
    marks = result_warnings.gradient_free_wins(
        [each for _, each in built], costs, Threat.parse(threat).norm, 100
    )
    assert [mark.code for mark in marks] == [code] * bool(code)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(36, 10)
        generator = torch.Generator().manual_seed(1)
        self.linear.weight.data.uniform_(-1 / 6, 1 / 6, generator=generator)
        self.linear.bias.data.uniform_(-1 / 6, 1 / 6, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


class Masked(Linear):
    """Gradients are zero, but random starts fool some images."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return (logits * 4).round() / 4 + logits * 0


class Infinite(Linear):
    """One logit is never finite."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).index_fill(1, torch.tensor([9]), -torch.inf)


def on_linear(model, spec, eps, n=6, **options):
    x = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(5))
    y, threat = model(x).argmax(1), Threat.parse(f"Linf:{eps}")
    attacks = build_attacks([spec], threat)
    return run_of(model.eval(), attacks, x, y, torch.arange(n), threat, 3, batch_size=8, **options).outcome()


@pytest.mark.parametrize(
    ("model", "spec", "eps", "codes"),
    [
        (Masked, "apgd(steps=2, restarts=8)", 0.06, {"zero-gradients", "loss-not-increasing"}),
        (Infinite, "apgd(steps=6, targets=8)", 0.08, {"nonfinite-logits"}),
        (Infinite, "square(queries=60)", 0.08, {"nonfinite-logits"}),
    ],
)
def test_counts_are_those_of_rows_in_strict_order(model, spec, eps, codes, monkeypatch):
    """However many processes there are, and wherever the run is interrupted."""
    whole = on_linear(model(), spec, eps)
    assert codes <= {mark.code for mark in whole.health} and 0 < int(whole.robust.sum()) < 6
    others = [on_linear(model(), spec, eps, shares=shares) for shares in (2, 3)]
    others.append(on_linear(model(), spec, eps, workers=2))
    others += [interrupted(stride, lambda **o: on_linear(model(), spec, eps, **o)) for stride in (3, 8)]
    with monkeypatch.context() as patched:
        # A row waits until no lower rank of its image runs, and no query is made ahead.
        patched.setattr(Supply, "_is_premature", lambda *arguments: True)
        patched.setattr(Ahead, "choose", lambda *arguments: None)
        others.append(on_linear(model(), spec, eps))
        assert others[-1].rows != whole.rows
    for other in others:
        assert other.health == whole.health
        assert torch.equal(other.x_adv, whole.x_adv) and other.passes == whole.passes

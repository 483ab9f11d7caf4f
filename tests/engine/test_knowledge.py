"""What the attacker knows is the choice of a surrogate; the judge is always the whole defense in fp32."""

import pytest
import torch
from torch import nn

from robench.attacks.build import build_attacks
from robench.core.errors import UsageError
from robench.defenses import Defense
from robench.engine.knowledge import attacker
from robench.evaluation.attack import attack
from robench.threats.threat import Threat
from tests.engine.runs import run_of
from tests.models import images, small_net


class Rounding(nn.Module):
    """A purifier without a useful gradient: eight gray levels."""

    def forward(self, x):
        return (x * 7).round() / 7


def defended(purifier=None, seed=0):
    return Defense(small_net(seed=seed), num_classes=10, image_size=8, purifier=purifier).eval()


def play(defense, knowledge, suite="apgd(steps=20)", eps="0.05", load=None):
    x = images(24)
    y = defense(x).argmax(1)
    threat = Threat.parse(f"Linf:{eps}")
    run = run_of(
        defense,
        build_attacks([suite], threat),
        x,
        y,
        torch.arange(24),
        threat,
        0,
        batch_size=24,
        attacker=attacker(knowledge, defense, load or (lambda name: defended(seed=int(name)))),
    )
    return run.outcome(), (x, y)


def test_bpda_walks_through_a_purifier_that_hides_its_gradient():
    defense = defended(Rounding())
    full, _ = play(defense, "full")
    bpda, (_, y) = play(defense, "bpda")
    assert full.robust_accuracy > 0.8 and "zero-gradients" in [mark.code for mark in full.health]
    assert bpda.robust_accuracy < full.robust_accuracy - 0.3
    fooled = ~bpda.robust
    assert (defense(bpda.x_adv[fooled]).argmax(1) != y[fooled]).all()


def test_an_oblivious_attacker_asks_the_judge_once_a_row():
    defense = defended(Rounding())
    judged = []
    forward = defense.purifier.forward
    defense.purifier.forward = lambda x: judged.append(len(x)) or forward(x)
    oblivious, (_, y) = play(defense, "oblivious")
    # Clean predictions and the check for randomness; then one batch for what every row ended on, and the last
    # predictions. Twenty steps of asking would show.
    assert len(judged) <= 12
    fooled = ~oblivious.robust
    assert (defense(oblivious.x_adv[fooled]).argmax(1) != y[fooled]).all()
    assert (oblivious.steps[fooled] <= 21).all()


def test_transfer_searches_on_another_defense_and_the_judge_decides():
    same, _ = play(defended(), "transfer:0", eps="0.01")
    full, _ = play(defended(), "full", eps="0.01")
    other, _ = play(defended(), "transfer:7", eps="0.01")
    assert same.robust_accuracy <= full.robust_accuracy + 0.1
    assert other.robust_accuracy > same.robust_accuracy


def test_a_surrogate_searches_on_another_defense_and_hears_each_verdict():
    """With the defense itself for surrogate nothing is hidden: the attack goes as in full knowledge."""
    same, (_, y) = play(defended(), "surrogate:0", eps="0.01")
    full, _ = play(defended(), "full", eps="0.01")
    assert torch.equal(same.robust, full.robust) and torch.equal(same.steps, full.steps)
    hearing, _ = play(defended(), "surrogate:7", eps="0.1")
    deaf, _ = play(defended(), "transfer:7", eps="0.1")
    # Who hears goes on until the defense is fooled; who does not stops when the other network is.
    assert hearing.attacks[0].forward > 2 * deaf.attacks[0].forward
    assert hearing.robust_accuracy <= deaf.robust_accuracy
    fooled = ~hearing.robust
    assert (defended()(hearing.x_adv[fooled]).argmax(1) != y[fooled]).all()


@pytest.mark.parametrize("knowledge", ["transfer:5", "surrogate:12"])
def test_a_surrogate_has_the_classes_of_the_defense(knowledge):
    def load(count):
        network = nn.Sequential(nn.Flatten(), nn.Linear(192, int(count)))
        return Defense(network, num_classes=int(count), image_size=8).eval()

    with pytest.raises(UsageError, match="classes, and the attacked defense has 10"):
        play(defended(), knowledge, load=load)


def test_a_smooth_surrogate_finds_the_gradient_that_the_defense_hides():
    hidden = defended(Rounding())
    full, _ = play(hidden, "full")
    smooth, _ = play(hidden, "surrogate:0")
    assert smooth.robust_accuracy < full.robust_accuracy - 0.3


def test_a_minimum_norm_attack_keeps_the_nearest_image_that_fools_the_defense_and_not_the_surrogate():
    """Nearer images that fool the surrogate alone do not replace it."""
    hidden = defended(Rounding())
    hearing, (_, y) = play(hidden, "surrogate:0", "fmn(steps=20, minimise=True)")
    deaf, _ = play(hidden, "oblivious", "fmn(steps=20, minimise=True)")
    fooled = ~hearing.robust
    assert (hidden(hearing.x_adv[fooled]).argmax(1) != y[fooled]).all()
    assert hearing.robust_accuracy < deaf.robust_accuracy


@pytest.mark.parametrize("knowledge", ["bpda", "oblivious"])
def test_without_a_purifier_there_is_nothing_to_leave_out(knowledge):
    with pytest.raises(UsageError, match="needs a purifier"):
        play(defended(), knowledge)


@pytest.mark.parametrize("knowledge", ["psychic", "transfer", "surrogate:", "full:x"])
def test_unknown_levels_are_refused(knowledge):
    with pytest.raises(UsageError):
        play(defended(), knowledge)


def test_reduced_precision_searches_and_fp32_decides():
    model, x = small_net(), images(40)
    y = model(x).argmax(1)
    options = {"threat": "Linf:0.006", "batch_size": 20}
    exact = attack("apgd(steps=30)", model, x, y, **options)
    fast = attack("apgd(steps=30)", model, x, y, precision="bf16", **options)
    assert fast.precision == "bf16"
    fooled = ~fast.robust
    assert fooled.any() and (model(fast.x_adv[fooled]).argmax(1) != y[fooled]).all()
    assert Threat.parse("Linf:0.006").contains(x, fast.x_adv).all()
    assert (fast.robust == exact.robust).float().mean() >= 0.85

"""What attacks cost on an image that is never fooled: against AutoAttack's counts, formulas, and real runs."""

import pytest
import torch

from robench import catalog
from robench.attacks._external import ForeignAttack
from robench.cli.main import main
from robench.core import registry
from robench.engine.counts import suite_cost
from robench.engine.query_cost import NeverFooled, passes
from robench.evaluation.attack import attack
from robench.threats.threat import Threat
from tests.models import images, small_net

# Forward and backward passes of the reference on a sample that is never fooled (fra31/auto-attack, standard, Linf).
# Ours are fewer by what it asks twice: clean logits before each attack and target, the final check of each, and in FAB
# a second forward pass at the point of the next step's first.
REFERENCE = {
    "apgd": (103, 101),
    'apgd(loss="dlr", targets=9)': (920, 909),
    "fab(targets=9)": (1829, 900),
    "square": (5004, 0),
}
OURS = {
    "apgd": (101, 101),
    'apgd(loss="dlr", targets=9)': (909, 909),
    "fab(targets=9)": (909, 900),
    "square": (5001, 0),
}


def counted(spec: str, threat: str = "Linf:8/255", classes: int = 10) -> tuple[int, int]:
    (found,) = passes((spec,), Threat.parse(threat), classes)
    return found.forward, found.backward


def test_autoattack_costs_no_more_than_the_reference():
    suite = catalog.suites()["autoattack"].specs("Linf")
    found = {p.spec: (p.forward, p.backward) for p in passes(tuple(suite), Threat.parse("Linf:8/255"), 10)}
    assert found == OURS
    for spec, (forward, backward) in found.items():
        assert forward < REFERENCE[spec][0] and backward == REFERENCE[spec][1]


@pytest.mark.parametrize(
    ("spec", "threat", "classes", "forward", "backward"),
    [
        ("apgd-l1(restarts=5)", "L1:12", 10, 515, 515),
        ("apgd(steps=7, eot=3, targets=9)", "L2:1", 4, 3 * 3 * 8, 3 * 3 * 8),
        ("fab(steps=10)", "L2:1", 5, 11, 50),
        ("fmn(steps=9, targets=2)", "L1:1", 10, 18, 18),
        ("ddn", "L2:1", 10, 100, 100),
        ("mifgsm(diversity=0.5)", "Linf:0.1", 10, 11, 11),
        ("spsa(steps=2, samples=3)", "Linf:0.1", 10, 15, 0),
        ("hopskipjump(queries=77)", "L2:1", 10, 77, 0),
        ("apgd-feature(steps=4, targets=9)", "Linf:0.1", 5, 4 * 5, 4 * 5),
        ("pgd-mi(steps=4)", "Linf:0.1", 10, 5, 5),
    ],
)
def test_counts_follow_from_the_settings(spec, threat, classes, forward, backward):
    assert counted(spec, threat, classes) == (forward, backward)


@pytest.mark.parametrize(
    "spec", ["apgd(steps=9)", "square(queries=100)", "nes(steps=3, samples=4)", "cw(steps=9, rounds=2)"]
)
def test_a_real_run_costs_the_same(spec):
    model, x = small_net(), images(3)
    result = attack(spec, model, x, model(x).argmax(1), threat="Linf:1e-7")
    assert [(int(f), int(b)) for f, b in zip(result.forward, result.backward, strict=True)] == [
        counted(spec)
    ] * 3


def test_the_dummy_is_never_fooled_and_has_a_gradient():
    model, corners = NeverFooled(10), (torch.rand(500, 3, 8, 8) > 0.5).float().requires_grad_()
    logits = model(corners)
    assert (logits.argmax(1) == 0).all()
    assert (torch.autograd.grad(logits[:, 1].sum(), corners)[0] != 0).any()


def test_every_attack_can_be_counted():
    for name in registry.attacks:
        kind = registry.attacks.get(name)
        if issubclass(kind, ForeignAttack) or (kind().num_queries > 1000 and kind.horizon == 1):
            continue
        _, (found,) = suite_cost(name)
        assert found.forward > 0, name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["apgd"], "apgd: 101 + 101"),
        (["pgd(steps=5)+fgsm", "--threat", "L2:1"], "in all: 8 + 8"),
        (["apgd(targets=9)", "--classes", "3"], "apgd(targets=9): 202 + 202"),
    ],
)
def test_show_says_what_was_counted(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["show", *arguments])
    assert ended.value.code == 0 and said in capsys.readouterr().out


def test_show_refuses_a_norm_in_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["show", "ddn", "--threat", "L1:3"])
    assert (
        ended.value.code == 2 and "ddn is defined in L2" in capsys.readouterr().err.strip().splitlines()[-1]
    )

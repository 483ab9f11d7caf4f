"""Score-based and transfer attacks: gradient estimates, published steps and query counts."""

import math

import pytest
import torch
from scipy import ndimage

from robench.attacks._input_diversity import Resizing
from robench.attacks._translation_invariance import smoothed
from robench.attacks.build import build_attacks
from robench.attacks.mifgsm import MIFGSM
from robench.attacks.nes import NES
from robench.attacks.spsa import SPSA
from robench.core.errors import UsageError
from robench.core.rng import Stream
from robench.engine.knowledge import Attacker
from robench.evaluation.attack import attack
from robench.threats.threat import Threat
from tests.attacks.driver import RowByRow, check_lanes, play, problem, rows_of
from tests.combinations import each_once
from tests.engine.runs import run_of
from tests.models import Linear, images, small_net


@pytest.mark.parametrize(
    ("estimated", "turns", "least"),
    [(SPSA(samples=400), 800, 0.8), (NES(samples=400, loss="margin"), 800, 0.75)],
    ids=["spsa", "nes"],
)
def test_the_estimate_points_along_the_gradient(estimated, turns, least):
    """With n random directions in D pixels, the cosine to the gradient is about sqrt(n / (n + D))."""
    model, x = Linear(2, (3, 8, 8)), images(4)
    _, state = play(model, estimated, problem("Linf:0.1", 2), rows_of(model, x), turns)
    y = model(x).argmax(1)
    true = model.weight.detach()[1 - y] - model.weight.detach()[y]
    cosine = torch.cosine_similarity(state.total.flatten(1), true)
    assert abs(math.sqrt(400 / 592) - 0.822) < 1e-3
    assert (cosine > least).all() and (cosine < 0.9).all()


@pytest.mark.parametrize(
    ("norm", "spec"),
    each_once(["Linf", "L2"], ["spsa(steps=20, samples=32", 'nes(steps=50, samples=16, loss="margin"']),
)
def test_score_based_attacks_succeed_a_little_beyond_the_boundary(norm, spec):
    model, x = Linear(2, (3, 8, 8)), images(1)
    y = model(x).argmax(1)
    eps = 1.5 * float(model.distances(x, y, norm)[0])
    spec = f"{spec}, step_size={eps / 8})"
    result = attack(spec, model, x, y, threat=f"{norm}:{eps:.7f}")
    assert not result.robust[0] and result.passes["backward"] == 0
    assert Threat.parse(f"{norm}:{eps:.7f}").contains(x, result.x_adv).all()


@pytest.mark.parametrize(
    ("spec", "queries"), [("spsa(steps=3, samples=7)", 46), ("nes(steps=2, samples=5)", 23)]
)
def test_the_number_of_queries_is_as_stated(spec, queries):
    model, x = small_net(), images(5)
    result = attack(spec, model, x, model(x).argmax(1), threat="Linf:1e-6")
    assert (result.forward == queries).all() and (result.backward == 0).all()


@pytest.mark.parametrize(
    "each",
    [SPSA(steps=3, samples=3), NES(steps=3, samples=3), MIFGSM(diversity=0.7, translation=2, steps=15)],
    ids=["spsa", "nes", "mifgsm"],
)
def test_lanes_are_independent(each):
    model = RowByRow(4)
    rows = rows_of(model, images(6), [0, 0, 0, 0, 0, 0])
    check_lanes(model, each, problem("Linf:0.1", 4), rows, 15)


def test_momentum_accumulates_as_published():
    """Eqs. 6 and 7 in float64, by hand, on a curved model."""
    model, x = small_net().double(), images(3).double()
    y, eps, steps = model(x).argmax(1), 0.05, 4
    point, gathered = x.clone(), torch.zeros_like(x)
    for _ in range(steps):
        z = point.clone().requires_grad_()
        (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(z), y, reduction="sum"), z)
        gathered = gathered + grad / grad.abs().sum((1, 2, 3), keepdim=True)
        point = (point + eps / steps * gathered.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    single = small_net()
    asked, _ = play(
        single, MIFGSM(steps=steps), problem("Linf:0.05", 10), rows_of(single, x.float()), steps + 1
    )
    assert torch.allclose(torch.stack(asked[-1]).double(), point, atol=1e-6)


def test_resizing_is_bilinear_and_its_gradient_the_transpose():
    rows = rows_of(RowByRow(3, side=20), images(16, side=20))
    drawn = Resizing.drawn(Stream.of(0, "test"), rows, torch.arange(16), 0.7)
    shown, other = (
        drawn.forward(rows.x),
        torch.randn(16, 3, 20, 20, generator=torch.Generator().manual_seed(0)),
    )
    left = (shown.double() * other).sum((1, 2, 3))
    assert torch.allclose(left, (rows.x.double() * drawn.back(other)).sum((1, 2, 3)), atol=1e-3)
    sizes = set()
    for i in range(16):
        filled = shown[i].abs().sum((0, 2)) > 0
        size = int(filled.sum())
        top, left_edge = int(filled.int().argmax()), int((shown[i].abs().sum((0, 1)) > 0).int().argmax())
        inner = shown[i, :, top : top + size, left_edge : left_edge + size]
        there = torch.nn.functional.interpolate(rows.x[i : i + 1], size=(size, size), mode="bilinear")
        assert torch.allclose(inner, there[0], atol=1e-5)
        sizes.add(size)
    assert sizes <= {18, 19, 20} and len(sizes) == 3


def test_smoothing_is_a_gaussian_filter():
    grad = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    sigma = 3 / math.sqrt(3)
    there = ndimage.gaussian_filter(grad.numpy(), (0, 0, sigma, sigma), mode="constant", radius=(0, 0, 3, 3))
    assert torch.allclose(smoothed(grad, 3), torch.from_numpy(there), atol=1e-5)


def run_blind(spec: str, threat: str):
    """An attack on one network without feedback from the other."""
    torch.manual_seed(1)
    judge, surrogate, x = small_net(seed=0), small_net(seed=1), images(12)
    chosen = Threat.parse(threat)
    return run_of(
        judge,
        build_attacks([spec], chosen),
        x,
        judge(x).argmax(1),
        torch.arange(12),
        chosen,
        0,
        batch_size=8,
        attacker=Attacker(surrogate, no_verdict_feedback=True),
    ).outcome()


def test_a_transfer_attack_takes_all_steps_without_feedback():
    hopeful, patient = run_blind("pgd(steps=10)", "Linf:0.02"), run_blind("mifgsm", "Linf:0.02")
    attacked = patient.forward > 0
    # The surrogate disagrees with most labels from the start, so pgd stops at once.
    assert (patient.forward[attacked] == 11).all() and (hopeful.forward[attacked] < 11).any()


def test_minimisation_uses_the_surrogate_alone():
    outcome = run_blind("ddn(minimise=True)", "L2:1")
    assert (outcome.forward[outcome.forward > 0] == 100).all()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mifgsm(diversity=2.0)", "a probability in"),
        ("mifgsm(translation=0.5)", "expected a whole number"),
        ("spsa(samples=0)", "whole number"),
        ("nes(delta=0)", "above 0"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(spec, said):
    model, x = Linear(3, (3, 8, 8)), images(2)
    with pytest.raises(UsageError, match=said):
        attack(spec, model, x, model(x).argmax(1), threat="Linf:0.1")

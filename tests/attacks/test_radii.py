"""Points stay inside ball and box exactly, and a larger ball fools at least as many images as a smaller one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robench.attacks._projections import project_hyperplane, project_l1_box
from robench.core.errors import UsageError
from robench.evaluation.attack import attack
from robench.threats.threat import Threat, largest_distance
from tests.combinations import each_once

_SEEDS, _SIZES = st.integers(0, 10_000), st.sampled_from([0.01, 1.0, 100.0])


def pixels(seed, *shape):
    """Pixels of every magnitude, some of them at the ends of the range."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator) ** torch.randint(1, 9, shape, generator=generator)
    ends = torch.randint(0, 12, shape, generator=generator)
    x = torch.where(torch.rand(shape, generator=generator) < 0.5, x, 1 - x)
    return torch.where(ends == 0, 0.0, torch.where(ends == 1, 1.0, x)), generator


@given(seed=_SEEDS, size=_SIZES, eps=st.sampled_from([0.01, 1.0, 20.0, 48.0, 192.0, 1000.0]))
@settings(max_examples=80, deadline=None)
def test_projections_onto_the_l1_ball_stay_in_the_box(seed, size, eps):
    x, generator = pixels(seed, 8, 3, 8, 8)
    point = x + project_l1_box(x, size * torch.randn(x.shape, generator=generator), eps)
    assert point.min() >= 0 and point.max() <= 1
    # A float32 pixel may be off by half a unit in the last place, more than 1e-6 of a small radius.
    size = (point.double() - x.double()).abs().flatten(1).sum(1)
    assert (size <= eps * (1 + 1e-6) + x[0].numel() * 2.0**-25).all()


@given(seed=_SEEDS, size=_SIZES, norm=st.sampled_from(["Linf", "L2", "L1"]))
@settings(max_examples=80, deadline=None)
def test_projections_onto_a_hyperplane_stay_in_the_box(seed, size, norm):
    t, generator = pixels(seed, 8, 48)
    w, gap = torch.randn(t.shape, generator=generator), size * torch.randn(8, generator=generator)
    point = t + project_hyperplane(t, w, gap, norm)
    assert point.min() >= 0 and point.max() <= 1


ATTACKS = {
    "Linf": ["fgsm", "pgd(steps=5)", "apgd(steps=5)", "square(queries=60)", "fab(steps=4)"],
    "L2": ["pgd(steps=5)", "apgd(steps=5)", "square(queries=60)", "fab(steps=4)", "ddn(steps=8)"],
    "L1": ["apgd-l1(steps=20)", "fmn(steps=8)", "square(queries=60)", "fab(steps=4)"],
    "L0": ["sparse-rs(queries=60)"],
}


@pytest.mark.filterwarnings("ignore:.*contains every possible image")
@pytest.mark.parametrize(
    ("norm", "spec"), [(norm, spec) for norm, specs in ATTACKS.items() for spec in specs]
)
def test_robust_accuracy_falls_with_the_radius(norm, spec):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    x = pixels(3, 16, 3, 8, 8)[0]
    with torch.no_grad():
        y = net(x).argmax(1)
    most = largest_distance(norm, 3, 8, 8)
    radii = [most, 5 * most] if norm in ("L2", "L1") else [most]
    accuracy = []
    for eps in [max(most / 64, 1) if norm == "L0" else most / 200, most / 4, *radii]:
        threat = Threat.parse(f"{norm}:{eps:.6f}" if norm != "L0" else f"L0:{eps:.0f}")
        result = attack(spec, net, x, y, threat=threat)
        assert threat.contains(x, result.x_adv).all()
        with torch.no_grad():
            assert torch.equal(net(result.x_adv).argmax(1) == y, result.robust)
        accuracy.append(result.robust_accuracy)
    assert accuracy == sorted(accuracy, reverse=True), accuracy


@pytest.mark.parametrize(
    ("shape", "threat"),
    each_once(
        [(1, 2, 128), (3, 1, 1), (3, 2, 2), (1, 3, 100), (3, 4, 64), (1, 100, 3), (2, 1, 9)],
        ["Linf:0.05", "L2:0.3", "L1:2", "Linf:1", "L2:9", "L1:200"],
    ),
)
def test_square_attacks_narrow_images_in_every_norm(shape, threat):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 10)).eval()
    x = pixels(1, 4, *shape)[0]
    with torch.no_grad():
        y = net(x).argmax(1)
        result = attack("square(queries=80)", net, x, y, threat=threat)
        assert torch.equal(net(result.x_adv).argmax(1) == y, result.robust)
    assert Threat.parse(threat).contains(x, result.x_adv).all()


TRANSFORMATIONS = (
    "snow",
    "fog",
    "recolor",
    "jpeg",
    "gabor",
    "elastic",
    "stadv",
    "pixel",
    "spatial",
    "low-frequency",
)


@pytest.mark.parametrize(("name", "channels"), each_once(TRANSFORMATIONS, [1, 2, 3, 4]))
def test_transformations_run_or_refuse_other_numbers_of_channels(name, channels):
    net = nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, 10)).eval()
    x = pixels(2, 4, channels, 8, 8)[0]
    spec = "grid" if name == "spatial" else "pgd(steps=2)"
    try:
        result = attack(spec, net, x, torch.zeros(4).long(), threat=f"{name}:0.3")
    except UsageError as error:
        assert channels != 3 and "channels" in str(error) and "\n" not in str(error)
    else:
        assert (result.x_adv.shape == x.shape and name not in ("recolor", "jpeg")) or channels == 3

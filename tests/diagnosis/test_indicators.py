"""Indicators against closed forms, and against the published formulas by another path."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc

from robench.catalog import Protocol
from robench.core.rng import normal_like
from robench.data import Images
from robench.defenses import Defense, Loaded
from robench.diagnosis import failure, gradients, runs
from robench.diagnosis._base import EOT, Case, Indicator
from robench.diagnosis.paths import follow
from tests.models import Linear, images, small_net

LOSSES = st.lists(
    st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=5, max_size=5), min_size=1, max_size=6
)


def case_of(network, x, y, threat="Linf:0.02", stochastic=False, lanes=8, seed=0):
    defense = Defense(network, num_classes=10, image_size=8, stochastic=stochastic).eval()
    data = Images("own", "test", x, y, torch.arange(len(x)), tuple("0123456789"))
    loaded = Loaded("own", defense, None, "", None, "")
    protocol = Protocol("own", "own", threat, len(x))
    return Case.of(loaded, data, protocol, "full", seed, torch.device("cpu"), lanes)


def test_a_straight_line_and_an_early_corner_are_the_ends_of_the_scale():
    line = torch.linspace(1, 0, 51)[None].double()
    assert float(failure.break_point_angle(line)) == pytest.approx(1)
    # Down to nothing at the first of a hundred steps: an angle of all but 90 degrees.
    corner = torch.zeros(1, 101).double()
    corner[0, 0] = 1
    assert float(failure.break_point_angle(corner)) == pytest.approx(0.01 / math.sqrt(1.0001), rel=1e-6)
    never = failure.scaled(torch.full((1, 20), 3.0))
    assert float(failure.break_point_angle(never)) == 1 and float(failure.increasing_loss(never)) == 0


def test_the_angle_is_the_law_of_cosines():
    loss = failure.scaled(torch.rand(20, 15, generator=torch.Generator().manual_seed(0)))
    for row, found in zip(loss.numpy(), failure.break_point_angle(loss).tolist(), strict=True):
        points = np.stack([np.linspace(0, 1, 15), row], 1)
        (x1, y1), (x2, y2) = points[0], points[-1]
        # Twice the area of the triangle over a fixed base: the furthest point has the largest.
        areas = np.abs((x2 - x1) * (points[1:-1, 1] - y1) - (points[1:-1, 0] - x1) * (y2 - y1))
        corner = points[1:-1][areas.argmax()]
        a, b, c = (
            np.linalg.norm(p - q) for p, q in ((corner, points[0]), (corner, points[-1]), points[[0, -1]])
        )
        assert found == pytest.approx(abs((a * a + b * b - c * c) / (2 * a * b)), abs=1e-9)


def test_the_increasing_loss_is_the_published_area():
    loss = failure.scaled(torch.rand(20, 12, generator=torch.Generator().manual_seed(1)))
    for row, found in zip(loss.numpy(), failure.increasing_loss(loss).tolist(), strict=True):
        rising = [value for i in range(1, 12) if row[i] > row[i - 1] for value in (row[i], row[i - 1])]
        assert found == pytest.approx(auc(np.linspace(0, 1, len(rising)), rising))


@given(LOSSES)
def test_both_lie_in_the_unit_interval(losses):
    loss = failure.scaled(torch.tensor(losses, dtype=torch.float64))
    for value in (failure.break_point_angle(loss), failure.increasing_loss(loss)):
        assert bool(((value >= 0) & (value <= 1 + 1e-9)).all())


def test_a_path_fools_a_linear_classifier_where_its_boundary_is_near_enough():
    model, x = Linear(10, (3, 8, 8)), images(24)
    y = model(x).argmax(1)
    eps = float(model.distances(x, y, "Linf").median()) * 1.0001
    case = case_of(model, x, y, f"Linf:{eps:.9f}")
    found = follow(case, case.followed)
    assert torch.equal(found.failed, model.distances(x, y, "Linf") > eps)
    assert not found.vanished.any() and torch.equal(found.wrong, found.fooled)
    assert bool(case.threat.contains(x, found.last).all())
    again = follow(replace(case, x=case.x.flip(0), y=case.y.flip(0), ids=case.ids.flip(0)), case.followed)
    assert torch.allclose(again.loss.flip(0), found.loss, atol=1e-5)


def test_a_surrogate_that_is_not_the_defense_does_not_transfer():
    x = images(24)
    one, other = small_net(), small_net(seed=5)
    y = one(x).argmax(1)
    case = case_of(one, x, y)
    theirs = case_of(other, x, other(x).argmax(1))
    blind = replace(case, network=theirs.network, surrogate_is_judge=False)
    by_code = {sign.code: sign for sign in failure.indicators(blind, follow(blind, blind.followed))}
    assert by_code["non-transferable"].warns
    sound = {sign.code: sign for sign in failure.indicators(case, follow(case, case.followed))}
    assert sound["non-transferable"].value == 0 and not sound["non-transferable"].warns


def test_an_indicator_is_doubtful_beyond_its_threshold_and_nan_is_not_fine():
    def doubt(value, falls=False):
        return Indicator("a", "a", value, 0.5, "", "", falls).warns

    assert [doubt(v) for v in (0.4, 0.5, 0.6, None, math.nan)] == [False, False, True, False, True]
    assert [doubt(v, True) for v in (0.4, 0.5, 0.6, None)] == [True, False, False, False]


def test_two_means_of_draws_agree_as_the_formula_says():
    generator = torch.Generator().manual_seed(2)
    signal = torch.nn.functional.normalize(torch.randn(4000, generator=generator), dim=0)
    draws = signal + 1.5 * torch.randn(2, 40, 5, 4000, generator=generator) / 4000**0.5
    single = float(gradients.between_draws(draws[0]).mean())
    assert single == pytest.approx(1 / (1 + 1.5**2), abs=0.02)
    one, other = draws.mean(2)
    measured = float(torch.nn.functional.cosine_similarity(one, other, dim=1).mean())
    assert gradients.averaged(single, 5) == pytest.approx(measured, abs=0.02)


def test_gradients_of_a_linear_classifier_agree_and_those_of_noise_do_not():
    model, x = Linear(10, (3, 8, 8)), images(8)
    y = model(x).argmax(1)
    assert gradients.indicator(case_of(model, x, y, "Linf:0.0001")).value == pytest.approx(1, abs=1e-5)

    class Shattered(torch.nn.Module):
        """The gradient's direction is another one a hair's breadth away: 27 radians of the sine."""

        def forward(self, x):
            return model(x) + 1e-6 * model((x * 4.3e6).sin())

    found = gradients.indicator(case_of(Shattered(), x, y, "Linf:0.0001"))
    assert found.warns and found.value < 0.3


class NoisyGradient(torch.nn.Module):
    """Answers of a network, and gradients times 1 + noise, which in two draws have a cosine of 1 / 2."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x + normal_like(x) * (x - x.detach()))


def test_gradients_of_a_randomised_defense_are_averaged_over_its_draws():
    model, x = Linear(10, (3, 8, 8)), images(8)
    case = case_of(NoisyGradient(model), x, model(x).argmax(1), "Linf:0.0001", stochastic=True)
    assert case.eot == EOT and case.followed.endswith(f", eot={EOT})")
    found = gradients.indicator(case)
    assert found.value == pytest.approx(EOT / (EOT + 1), abs=0.03) and f"over {EOT} draws" in found.text


@pytest.mark.parametrize(("norm", "grey"), [("Linf", "0.5"), ("L2", "6.9282"), ("L1", "96")])
def test_the_grey_radius_reaches_grey_from_every_image(norm, grey):
    threat = runs.radius(norm, (3, 8, 8), 0.5)
    assert threat == f"{norm}:{grey}"
    from robench.threats.threat import Threat

    corner = torch.tensor([0.0, 1.0]).repeat(96).view(1, 3, 8, 8)
    distance = float(Threat.parse(threat).distance(corner, torch.full_like(corner, 0.5)))
    assert distance == pytest.approx(float(grey), rel=1e-4)

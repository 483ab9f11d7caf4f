"""Which points count: allowed ones that fool the judge, the best of each row, as the record will hold them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robench.attacks._base import Rows
from robench.engine.batched_model import Judge, Network
from robench.engine.lanes import Lanes
from robench.engine.verdicts import Verdicts
from robench.threats.threat import Threat

LANES, EPS = 4, 0.1
THREAT = Threat.parse(f"Linf:{EPS}")


def brightness(x):
    """Two classes: dark and bright."""
    mean = x.mean((1, 2, 3))
    return torch.stack([0.5 - mean, mean - 0.5], 1)


@pytest.fixture
def rows():
    none = torch.zeros(LANES, dtype=torch.int64)
    x = torch.full((LANES, 3, 4, 4), 0.45)
    return Rows(x, none, brightness(x), torch.arange(LANES), none, torch.ones(LANES, dtype=torch.bool))


def verdicts(minimise=False, surrogate_is_judge=False):
    attack = SimpleNamespace(minimise=minimise, judged_at_end=False, transfers=False, minimum_norm=minimise)
    context: Any = SimpleNamespace(
        attack=attack,
        problem=SimpleNamespace(threat=THREAT),
        judge=Judge(Network(brightness, LANES)),
        surrogate_is_judge=surrogate_is_judge,
        no_verdict_feedback=False,
        exact=None,
        device=torch.device("cpu"),
    )
    return Verdicts(context, Lanes.idle(LANES))


def moved(rows, *steps):
    return rows.x + torch.tensor(steps).view(-1, 1, 1, 1)


@pytest.mark.parametrize("surrogate_is_judge", [True, False])
def test_only_points_that_are_allowed_and_fool_count(rows, surrogate_is_judge):
    points = moved(rows, 0.06, 0.04, 0.11, 0.09)
    active = torch.tensor([True, True, True, False])
    of = verdicts(surrogate_is_judge=surrogate_is_judge)
    draws = of.judge(points, points, of.facts(brightness(points), points, rows), rows, active)
    assert draws.tolist() == [1, 0, 0, 0]


def test_the_judge_and_not_the_surrogate_decides(rows):
    points = moved(rows, 0.04, 0.04, 0.06, 0.06)
    says_all = torch.tensor([[0.0, 1.0]]).expand(LANES, -1)
    of = verdicts()
    draws = of.judge(
        points, points, of.facts(says_all, points, rows), rows, torch.ones(LANES, dtype=torch.bool)
    )
    assert draws.tolist() == [0, 0, 1, 1]


def test_a_point_that_fools_fewer_draws_does_not_replace_one_that_fools_more(rows):
    of = verdicts()
    active = torch.ones(LANES, dtype=torch.bool)
    first, second = moved(rows, 0.06, 0.06, 0.06, 0.06), moved(rows, 0.07, 0.07, 0.07, 0.07)
    of.keep(active, torch.tensor([3, 3, 3, 0]), first, rows)
    of.keep(active, torch.tensor([2, 3, 4, 1]), second, rows)
    assert of.lanes.kept_draws.tolist() == [3, 3, 4, 1]
    kept = [of.kept[lane] for lane in range(LANES)]
    assert [torch.equal(point, first[0]) for point in kept] == [True, True, False, False]


def test_of_an_attack_that_minimises_the_nearest_point_is_kept(rows):
    of = verdicts(minimise=True)
    active = torch.ones(LANES, dtype=torch.bool)
    for step in (0.08, 0.06, 0.07):
        points = moved(rows, step, step, step, step)
        draws = of.judge(points, points, of.facts(brightness(points), points, rows), rows, active)
        # No point of the last step is nearer.
        assert (draws is None) == (step == 0.07)
        if draws is not None:
            of.keep(active, draws, points, rows)
    assert of.lanes.kept_distance.tolist() == pytest.approx([0.06] * LANES, abs=1e-6)


def test_a_point_outside_the_ball_is_not_confirmed(rows, monkeypatch):
    of = verdicts()
    of.keep(
        torch.ones(LANES, dtype=torch.bool),
        torch.ones(LANES).long(),
        moved(rows, 0.06, 0.06, 0.06, 0.06),
        rows,
    )
    assert set(of.confirm([0, 1], rows)) == {0, 1}
    # As if a point were written down further away than it was judged.
    for name in ("rounded", "as_recorded"):
        monkeypatch.setattr(Threat, name, lambda threat, x, point: x + 3 * (point - x))
    assert of.confirm([0, 1], rows) == {}

"""DDN, FMN and HopSkipJump: closed forms on linear models, the box, independent lanes, smallest distances in runs."""

import pytest
import torch

from robench.attacks.ddn import DDN
from robench.attacks.fmn import FMN
from robench.attacks.hopskipjump import HopSkipJump
from robench.core.errors import UsageError
from robench.core.rng import Stream
from robench.evaluation.attack import attack
from robench.threats.threat import rownorm
from tests.attacks.driver import RowByRow, check_lanes, play, problem, rows_of
from tests.combinations import each_once
from tests.models import Linear, images, small_net


@pytest.mark.parametrize(
    ("case", "classes"),
    each_once([(DDN(), "L2"), (FMN(), "Linf"), (FMN(), "L2"), (FMN(), "L1")], [2, 3, 10]),
    ids=str,
)
def test_perturbations_are_close_to_the_smallest(case, classes):
    minimal, norm = case
    model, x = Linear(classes, (3, 8, 8)), images(8)
    rows = rows_of(model, x)
    _, state = play(model, minimal, problem(f"{norm}:1", classes), rows, minimal.num_queries)
    assert minimal.finished(state).all()
    best = minimal.best(state)
    assert (model(best).argmax(1) != rows.y).all()
    assert best.min() >= 0 and best.max() <= 1
    ratio = rownorm(best - x, norm) / model.distances(x, rows.y, norm)
    assert (ratio >= 0.9999).all() and (ratio <= 1.02).all()


def test_ddn_takes_random_steps_where_the_gradient_is_zero():
    """Logits a thousand times as large: the cross-entropy's gradient is 0 to the last bit until a point fools."""
    model, x = Linear(3, (3, 8, 8)), images(8)
    y = model(x).argmax(1)
    result = attack("ddn(minimise=True)", lambda x: 1000 * model(x), x, y, threat="L2:100")
    assert "zero-gradients" in [mark.code for mark in result.health]
    fooled = ~result.robust
    assert fooled.sum() >= 4
    ratio = result.distance[fooled] / model.distances(x, y, "L2")[fooled]
    assert (ratio >= 0.9999).all() and (ratio <= 1.1).all()


def test_ddn_draws_numbers_only_for_rows_without_gradient(monkeypatch):
    drawn, normal = [], Stream.normal
    monkeypatch.setattr(
        Stream, "normal", lambda self, sample, *rest: drawn.append(len(sample)) or normal(self, sample, *rest)
    )
    model, x = Linear(3, (3, 8, 8)), images(5)
    # Lanes beyond the five rows are idle.
    attack("ddn(steps=3)", model, x, model(x).argmax(1), threat="L2:0.001", batch_size=8)
    assert not drawn
    attack("ddn(steps=3)", lambda x: 1000 * model(x), x, model(x).argmax(1), threat="L2:0.001", batch_size=8)
    assert drawn and max(drawn) <= 5


# With decisions only and more classes, it may end at the boundary of a class other than the nearest.
@pytest.mark.parametrize(("norm", "queries", "samples"), [("Linf", 1000, 30), ("L2", 500, 20)])
def test_decision_based_perturbations_are_close_to_the_smallest(norm, queries, samples):
    model, x = Linear(2, (3, 4, 4)), images(6, side=4)
    rows, hops = rows_of(model, x), HopSkipJump(queries=queries, samples=samples)
    asked, state = play(model, hops, problem(f"{norm}:1", 2), rows, hops.num_queries)
    assert hops.finished(state).all()
    best = hops.best(state)
    assert (model(best).argmax(1) != rows.y).all()
    ratio = rownorm(best - x, norm) / model.distances(x, rows.y, norm)
    assert (ratio >= 0.9999).all() and (ratio <= 1.25).all()
    points = torch.stack([torch.stack(turn) for turn in asked])
    assert points.min() >= 0 and points.max() <= 1


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize(
    ("spec", "norm"), [("hopskipjump(queries=200)", "Linf"), ("fmn", "L1"), ("fmn", "Linf"), ("ddn", "L2")]
)
def test_images_on_the_border_of_the_box_stay_inside(value, spec, norm):
    model, x = Linear(3, (3, 8, 8)), torch.full((2, 3, 8, 8), value)
    result = attack(spec, model, x, model(x).argmax(1), threat=f"{norm}:100")
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1 and result.x_adv.isfinite().all()


@pytest.mark.parametrize(("queries", "norm"), each_once([1, 37, 120], ["Linf", "L2"]))
def test_the_query_budget_is_used_exactly(queries, norm):
    model, x = small_net(), images(5)
    y = model(x).argmax(1)
    result = attack(f"hopskipjump(queries={queries})", model, x, y, threat=f"{norm}:1e-6")
    assert (result.forward == queries).all() and (result.backward == 0).all()


@pytest.mark.parametrize(
    ("minimal", "norm", "turns"),
    [
        (DDN(targets=2, steps=15), "L2", 15),
        (FMN(targets=2, steps=15), "Linf", 15),
        (FMN(steps=15), "L1", 15),
        (HopSkipJump(queries=60, samples=6), "L2", 60),
        (HopSkipJump(queries=60, samples=6), "Linf", 60),
    ],
    ids=str,
)
def test_lanes_are_independent(minimal, norm, turns):
    model = RowByRow(4)
    rows = rows_of(model, images(6), [0, 1, 0, 1, 0, 1])
    check_lanes(model, minimal, problem(f"{norm}:0.1", 4), rows, turns)


SPECS = [
    ("fmn", "Linf", 1.01),
    ("fmn", "L1", 1.02),
    ("ddn", "L2", 1.01),
    ("fab(targets=2", "L2", 1.01),
    ("cw(steps=40, rounds=7", "L2", 1.2),
]


@pytest.mark.parametrize(("spec", "norm", "most"), SPECS)
def test_only_minimise_continues_inside_the_ball(spec, norm, most):
    model, x = Linear(3, (3, 8, 8)), images(4)
    y = model(x).argmax(1)
    least = model.distances(x, y, norm)
    threat = f"{norm}:{3 * float(least.max()):.6f}"
    opened = spec if "(" in spec else f"{spec}("
    spare = attack(f"{opened})".replace("()", ""), model, x, y, threat=threat)
    close = attack(f"{opened}, minimise=True)".replace("(,", "("), model, x, y, threat=threat)
    assert not spare.robust.any() and not close.robust.any()
    assert (close.distance / least <= most).all() and (close.distance / least >= 0.9999).all()
    assert (close.distance <= spare.distance * (1 + 1e-5)).all()
    assert (close.forward > spare.forward).all()
    # The saved image fools as saved.
    assert (model(x + (close.x_adv - x)).argmax(1) != y).all()


def test_the_nearest_of_all_targets_is_kept():
    model, x = Linear(4, (3, 8, 8)), images(4)
    y = model(x).argmax(1)
    result = attack("fmn(targets=3, minimise=True)", model, x, y, threat="L2:100")
    assert (result.distance / model.distances(x, y, "L2") <= 1.01).all()
    assert (result.forward == 300).all()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("ddn(gamma=1.5)", "gamma below 1"),
        ("fmn(step_size=0)", "above 0"),
        ("fmn(minimise=1)", "expected True or False"),
        ("hopskipjump(queries=0)", "whole number"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(spec, said):
    model, x = Linear(3, (3, 8, 8)), images(2)
    with pytest.raises(UsageError, match=said):
        attack(spec, model, x, model(x).argmax(1), threat="L2:1")

"""Carlini & Wagner: closed forms on linear models, ball and box, independent lanes, unknown norms."""

import pytest
import torch

from robench.attacks.cw import CW
from robench.core.errors import UsageError
from robench.evaluation.attack import attack
from robench.threats.threat import rownorm
from tests.attacks.driver import RowByRow, check_lanes, play, problem, rows_of
from tests.combinations import each_once
from tests.models import Linear, images


@pytest.mark.parametrize(("norm", "classes"), each_once(["Linf", "L2"], [2, 10]))
def test_perturbations_are_close_to_the_smallest(norm, classes):
    model, x = Linear(classes, (3, 8, 8)), images(4)
    rows, cw = rows_of(model, x), CW()
    _, state = play(model, cw, problem(f"{norm}:1", classes), rows, cw.num_queries)
    assert cw.finished(state).all()
    best = cw.best(state)
    assert (model(best).argmax(1) != rows.y).all()
    assert best.min() >= 0 and best.max() <= 1
    ratio = rownorm(best - x, norm) / model.distances(x, rows.y, norm)
    assert (ratio >= 0.9999).all() and (ratio <= 1.25).all()


@pytest.mark.parametrize(
    ("norm", "spec", "batch_size"),
    each_once(["Linf", "L2"], ["cw", "cw(targets=2)", "cw(confidence=0.01)"], [1, 4]),
)
def test_the_engine_stops_inside_the_ball(norm, spec, batch_size):
    model, x = Linear(3, (3, 8, 8)), images(4)
    y = model(x).argmax(1)
    eps = 1.25 * float(model.distances(x, y, norm).max())
    result = attack(spec, model, x, y, threat=f"{norm}:{eps:.9f}", batch_size=batch_size)
    assert not result.robust.any()
    assert (result.distance <= eps * (1 + 1e-5)).all()
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_lanes_are_independent(norm):
    model = RowByRow(4)
    rows = rows_of(model, images(6), [0, 1, 0, 1, 0, 1])
    check_lanes(model, CW(targets=2, steps=5, rounds=4), problem(f"{norm}:0.1", 4), rows, 20)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_pixels_on_the_border_of_the_box(value):
    model, x = Linear(3, (3, 8, 8)), torch.full((2, 3, 8, 8), value)
    _, state = play(model, CW(steps=10, rounds=2), problem("L2:1", 3), rows_of(model, x), 20)
    assert state.w.isfinite().all()
    assert CW().best(state).isfinite().all()


def test_l1_is_refused():
    model, x = Linear(3, (3, 8, 8)), images(2)
    with pytest.raises(UsageError, match="L1"):
        attack("cw", model, x, model(x).argmax(1), threat="L1:5")
    with pytest.raises(UsageError, match="cw is not defined in L1"):
        CW().init(problem("L1:5", 3), rows_of(model, x))

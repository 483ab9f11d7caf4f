"""FAB: closed forms on linear models, the reference on a curved model, independent lanes."""

import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT

from robench.attacks._base import Answer
from robench.attacks.fab import FAB
from robench.engine.batched_model import Network
from robench.evaluation.attack import attack
from robench.threats.threat import rownorm
from tests.attacks.driver import RowByRow, check_lanes, play, problem, rows_of
from tests.combinations import each_once
from tests.models import Linear, images, small_net

NORMS = ["Linf", "L2", "L1"]
# Far beyond the boundaries of these images, so that only the attack determines the distance.
FAR = {"Linf": "Linf:1", "L2": "L2:10", "L1": "L1:100"}


@pytest.mark.parametrize(("norm", "classes", "targets"), each_once(NORMS, [2, 3, 10], [0, 9]))
def test_perturbations_are_close_to_the_smallest(norm, classes, targets):
    model, x = Linear(classes, (3, 8, 8)), images(8)
    fab, task = FAB(targets=targets, steps=30), problem(FAR[norm], classes)
    distance, found = model.distances(x, model(x).argmax(1), norm), []
    for rank in range(fab.ranks(classes)):
        rows = rows_of(model, x, [rank] * 8)
        _, state = play(model, fab, task, rows, 70)
        assert fab.finished(state).all()
        best = fab.best(state)
        assert best.min() >= 0 and best.max() <= 1
        size = rownorm(best - x, norm)
        assert ((model(best).argmax(1) != rows.y) | (size == 0)).all()
        found.append(torch.where(size > 0, size, torch.inf))
    ratio = torch.stack(found).amin(0) / distance
    # In L1 few pixels change, and some reach the box: the closed form is only a lower bound.
    assert (ratio >= 0.9999).all() and (ratio <= (1.25 if norm == "L1" else 1.05)).all()


@pytest.mark.parametrize(
    ("norm", "spec", "batch_size"),
    each_once(
        NORMS, ["fab(steps=30)", "fab(targets=9, steps=30)", "fab(targets=2, restarts=2, steps=30)"], [1, 5]
    ),
)
def test_the_engine_stops_inside_the_ball_and_finds_nothing_before_the_boundary(norm, spec, batch_size):
    model, x = Linear(10, (3, 8, 8)), images(6)
    y = model(x).argmax(1)
    distance = model.distances(x, y, norm)
    short, wide = 0.98 * float(distance.min()), 1.25 * float(distance.max())
    result = attack(spec, model, x, y, threat=f"{norm}:{wide:.9f}", batch_size=batch_size)
    assert not result.robust.any()
    assert (result.distance <= wide * (1 + 1e-5)).all()
    result = attack(spec, model, x[:1], y[:1], threat=f"{norm}:{short:.9f}", batch_size=batch_size)
    assert result.robust.all()


@pytest.mark.parametrize(("norm", "targeted"), each_once(NORMS, [False, True]))
def test_perturbations_are_as_small_as_those_of_the_reference(norm, targeted):
    model, x, eps = small_net(), images(24), {"Linf": 0.1, "L2": 1.0, "L1": 10.0}[norm]
    rows = rows_of(model, x)
    fab = FAB(targets=int(targeted), steps=25)
    _, state = play(model, fab, problem(f"{norm}:{eps}", 10), rows, 60)
    ours = rownorm(fab.best(state) - x, norm)
    reference = FABAttack_PT(model, norm=norm, n_iter=25, eps=eps, device="cpu", n_target_classes=1)
    reference.target_class = 2
    theirs = rownorm(reference.attack_single_run(x, rows.y, is_targeted=targeted) - x, norm)
    both = (ours > 0) & (theirs > 0)
    assert (ours > 0).sum() >= (theirs > 0).sum() - 1
    ratio = (ours / theirs)[both]
    assert 0.95 <= float(ratio.median()) <= 1.01


@pytest.mark.parametrize(("norm", "targets"), each_once(NORMS, [0, 2]))
def test_lanes_are_independent(norm, targets):
    model = RowByRow(4)
    rows = rows_of(model, images(6), [0, 1, 2, 3, 0, 1] if targets else [0, 1, 0, 1, 0, 1])
    fab = FAB(targets=targets, restarts=2, steps=12)
    check_lanes(model, fab, problem({"Linf": "Linf:0.1", "L2": "L2:1", "L1": "L1:5"}[norm], 4), rows, 20)


@pytest.mark.parametrize(("eta", "extra"), [(1.05, 1), (0.95, 0)])
def test_a_step_costs_one_backward_and_one_forward_or_two(eta, extra):
    # Overshooting a linear boundary crosses it at every step, and undershooting at none.
    model, x = Linear(10, (3, 8, 8)), images(4)
    y = model(x).argmax(1)
    eps = 0.5 * float(model.distances(x, y, "Linf").min())
    result = attack(f"fab(targets=1, steps=50, eta={eta})", model, x, y, threat=f"Linf:{eps:.9f}")
    assert (result.backward >= 50).all() and (result.forward >= 51 + 49 * extra).all()
    # The first retreat is not expected, so its gradient is not used. Checked for most images only, because the last
    # bits may decide on which side of the boundary a point lies.
    assert result.backward.median() <= 52 and result.forward.median() <= 53 + 50 * extra


def test_lanes_with_either_kind_of_query_make_progress():
    model, x = small_net(), images(9)
    y = model(x).argmax(1)
    for batch_size in (3, 9):
        result = attack("fab(targets=2, steps=8)", model, x, y, threat="Linf:0.002", batch_size=batch_size)
        alive = result.robust
        assert alive.any()
        assert (result.backward[alive] >= 16).all() and (result.forward[alive] <= 2 * 19).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_useless_gradients_do_not_move_a_lane(norm, bad):
    model, x = Linear(3, (3, 8, 8)), images(2)
    rows, task, fab = rows_of(model, x), problem(FAR[norm], 3), FAB()
    state = fab.init(task, rows)
    grad = torch.full((2, 3, 3, 8, 8), bad).transpose(-1, -2)
    new = fab.tell(
        task, rows, state, Answer(state.x, model(x).detach(), torch.tensor([[0.0, -1, -2]] * 2), grad)
    )
    torch.testing.assert_close(new.x, x)


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_lie_at_half_the_radius(norm):
    model, x, eps = Linear(3, (3, 8, 8)), images(3), 0.2
    state = FAB(restarts=3).init(problem(f"{norm}:{eps}", 3), rows_of(model, x, [0, 1, 2]))
    size = rownorm(state.x - x, norm)
    assert size[0] == 0
    torch.testing.assert_close(size[1:], torch.full((2,), eps / 2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_one_by_one_give_the_same_as_all_at_once(norm, monkeypatch):
    model, x = small_net(classes=7), images(10)
    y = model(x).argmax(1)
    threat = {"Linf": "Linf:0.05", "L2": "L2:0.4", "L1": "L1:4"}[norm]
    whole = attack("fab(steps=8, restarts=2)", model, x, y, threat=threat, batch_size=8)
    monkeypatch.setattr("robench.engine.batched_model._STACKED", 0)
    folded = attack("fab(steps=8, restarts=2)", model, x, y, threat=threat, batch_size=8)
    assert int(whole.robust.sum()) < 10
    assert torch.equal(whole.x_adv, folded.x_adv) and whole.passes == folded.passes
    assert whole.health == folded.health


def test_a_step_keeps_one_gradient_for_many_classes(monkeypatch):
    monkeypatch.setattr("robench.engine.batched_model._STACKED", 0)
    model, x = small_net(classes=50), images(4)
    network, fab, task = Network(model, 4), FAB(), problem("Linf:0.1", 50)
    rows = rows_of(model, x)
    ask = fab.ask(task, rows, fab.init(task, rows))
    answer = network.answer(x, ask.objective, rows, 1, torch.zeros(4, dtype=torch.int64))
    assert answer.grad.shape == x.shape and answer.loss.shape == (4, 50)
    assert answer.column is not None and (answer.column != rows.y).all()

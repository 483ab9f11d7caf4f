"""Sparse attacks on linear models, for which the minimum number of changed pixels is known."""

from dataclasses import replace

import pytest
import torch

from robench.attacks.build import build_attacks
from robench.core.errors import UsageError
from robench.evaluation.attack import attack
from robench.threats.threat import Threat, rownorm
from tests.attacks.driver import RowByRow, check_lanes, play, problem, rows_of
from tests.models import Linear, images


def built(spec: str, threat: str):
    return build_attacks([spec], Threat.parse(threat))[0][1]


def fewest(model: Linear, x: torch.Tensor, y: torch.Tensor, unit: str = "pixel") -> torch.Tensor:
    """The exact number of pixels (or components) that must change: those with the largest effect move to 0 or 1."""
    weight = model.weight.detach().double()
    logits = model(x).detach().double()
    best = torch.full((len(x),), 10_000)
    for target in range(len(weight)):
        difference = (weight[target] - weight[y]).view(len(x), *x.shape[1:])
        gain = torch.where(difference > 0, difference * (1 - x), -difference * x)
        gain = gain.sum(1) if unit == "pixel" else gain
        reach = gain.flatten(1).sort(dim=1, descending=True).values.cumsum(1)
        gap = logits.gather(1, y[:, None]) - logits[:, target, None]
        count = (reach <= gap).sum(1) + 1
        best = torch.where((y != target) & (count < best), count, best)
    return best


@pytest.fixture(scope="module")
def linear():
    model, x = Linear(10, (3, 8, 8)), images(10)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("budget", ["least", "below"])
def test_sigma_zero_is_close_to_the_fewest_pixels(linear, budget):
    model, x, y = linear
    needed = fewest(model, x, y)
    found = 0
    for i in range(0, len(x), 2):
        # The attack is a heuristic: at most two pixels more than the optimum, and never fewer.
        pixels = int(needed[i]) + 2 if budget == "least" else int(needed[i]) - 1
        if pixels < 1:
            continue
        result = attack("sigma-zero(steps=200)", model, x[i : i + 1], y[i : i + 1], threat=f"L0:{pixels}")
        assert result.distance[0] <= pixels
        found += not bool(result.robust[0])
        if budget == "below":
            assert result.robust[0]
    assert budget == "below" or found >= 4


def test_sigma_zero_counts_components_as_its_paper_does(linear):
    model, x, y = linear
    attacked = 'sigma-zero(steps=300, unit="component")'
    result = attack(attacked, model, x, y, threat="L0:40")
    assert not result.robust.any()
    components = (result.x_adv != x).flatten(1).sum(1)
    assert (components <= 3 * result.distance).all()
    asked, _ = play(model, built(attacked, "L0:40"), problem("L0:40", 10), rows_of(model, x), 300)
    last = torch.stack(asked[-1])
    sizes = (last != x).flatten(1).sum(1).float()
    assert (sizes <= 2.0 * fewest(model, x, y, "component") + 3).float().mean() >= 0.9


def test_sigma_zero_s_first_step_is_adam_s_on_a_normalised_gradient(linear):
    model, x, _ = linear
    _, state = play(model, built("sigma-zero", "L0:5"), problem("L0:5", 10), rows_of(model, x), 1)
    rows = rows_of(model, x)
    others = model(x).scatter(1, rows.y[:, None], -torch.inf).argmax(1)
    grad = (model.weight[rows.y] - model.weight[others]).view_as(x)
    # The first step of Adam is the step size along the sign of the gradient; then box and threshold apply.
    delta = (x - grad.sign()).clamp(0, 1) - x
    threshold = 0.3 - 0.01 * (0.1 + 0.9 * (1 + torch.cos(torch.tensor(torch.pi / 1000))) / 2)
    expected = delta * (delta.abs().amax(1, keepdim=True) >= threshold)
    assert torch.allclose(state.delta, expected, atol=1e-4)
    assert torch.allclose(state.threshold, threshold.expand(len(x)), atol=1e-6)


@pytest.mark.parametrize("pixels", [1, 4, 20])
def test_sparse_rs_changes_exactly_eps_pixels_to_corners(pixels):
    model, x = Linear(10, (3, 8, 8)), images(6)
    asked, _ = play(
        model,
        built("sparse-rs(queries=60)", f"L0:{pixels}"),
        problem(f"L0:{pixels}", 10),
        rows_of(model, x),
        60,
    )
    for points in asked:
        made = torch.stack(points)
        changed = (made != x).any(1)
        # Pixels of the images lie between 0.3 and 0.7.
        assert (changed.flatten(1).sum(1) == pixels).all()
        values = made.permute(0, 2, 3, 1)[changed]
        assert ((values == 0) | (values == 1)).all()


def test_sparse_rs_follows_its_schedule():
    model, x = Linear(10, (3, 8, 8)), images(4)
    rows, task = rows_of(model, x), problem("L0:20", 10)
    search = built("sparse-rs(queries=10000, alpha_init=0.5)", "L0:20")
    state = search.init(task, rows)
    for step, count in ((1, 5), (50, 5), (51, 2), (201, 2), (501, 1), (9999, 1)):
        at = replace(state, step=torch.full_like(state.step, step))
        proposed, chosen = search._proposed(task, rows, at)
        assert ((chosen & ~state.chosen).sum(1) == count).all() and (chosen.sum(1) == 20).all()
        assert ((proposed != state.best).any(1).flatten(1).sum(1) <= 2 * count).all()


@pytest.mark.parametrize("side", [1, 3, 8])
def test_patch_rs_changes_one_square_to_corners(side):
    model, x = Linear(10, (3, 8, 8)), images(4)
    search = built("patch-rs(queries=80)", f"patch:{side}")
    asked, state = play(model, search, problem(f"patch:{side}", 10), rows_of(model, x), 80)
    for points in asked:
        made = torch.stack(points)
        assert (rownorm(made - x, "patch") == side).all()
        assert ((made == x) | (made == 0) | (made == 1)).all()
    places = {tuple(place) for place in state.place.tolist()}
    assert len(places) > 1 or side == 8


@pytest.mark.parametrize(
    ("spec", "threat"),
    [
        ("sparse-rs(queries=20)", "L0:6"),
        ("patch-rs(queries=20)", "patch:3"),
        ("sigma-zero(steps=20)", "L0:6"),
    ],
)
def test_rows_are_independent(spec, threat):
    model, x = RowByRow(10), images(6)
    check_lanes(model, built(spec, threat), problem(threat, 10), rows_of(model, x), 20)


@pytest.mark.parametrize("spec", ["sparse-rs(queries=200)", "patch-rs(queries=200)"])
def test_queries_ahead_change_nothing(spec):
    """Idle lanes make later queries of a row; with one lane there are none."""
    threat = "L0:4" if spec.startswith("sparse") else "patch:2"
    model, x = Linear(10, (3, 8, 8)), images(6)
    y = model(x).argmax(1)
    one, many = (attack(spec, model, x, y, threat=threat, batch_size=lanes) for lanes in (1, 16))
    assert one.fooled_by == many.fooled_by and one.passes == many.passes
    assert torch.equal(one.x_adv, many.x_adv)


def test_more_pixels_fool_at_least_as_many():
    model, x = Linear(10, (3, 8, 8)), images(12)
    y = model(x).argmax(1)
    for spec, norm in (
        ("sparse-rs(queries=80)", "L0"),
        ("sigma-zero(steps=60)", "L0"),
        ("patch-rs(queries=80)", "patch"),
    ):
        left = [int(attack(spec, model, x, y, threat=f"{norm}:{size}").robust.sum()) for size in (1, 3, 6)]
        assert left == sorted(left, reverse=True)


def test_counts_are_pixels_and_squares():
    delta = torch.zeros(3, 3, 8, 8)
    delta[1, 0, 2, 2] = delta[1, 1, 2, 2] = delta[1, 2, 4, 3] = 0.1
    delta[2, :, 0, 7] = delta[2, :, 7, 0] = 1
    assert rownorm(delta, "L0").tolist() == [0, 2, 2]
    assert rownorm(delta, "patch").tolist() == [0, 3, 8]


@pytest.mark.parametrize("text", ["L0:0.5", "patch:2.5", "L0:1/3"])
def test_counts_are_whole(text):
    with pytest.raises(UsageError, match="whole number"):
        Threat.parse(text)


def test_attacks_in_norms_are_refused_for_counted_pixels():
    model, x = Linear(10, (3, 8, 8)), images(2)
    with pytest.raises(UsageError, match="apgd is defined in Linf, L2: L0:3 is not among them"):
        attack("apgd", model, x, model(x).argmax(1), threat="L0:3")

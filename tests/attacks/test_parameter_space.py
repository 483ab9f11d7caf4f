"""Attacks in the parameters of a transformation: closed forms, penalties, budgets, guarantees, errors."""

import math
import re
from typing import Any

import pytest
import torch

import robench
from robench.attacks.build import build_attacks
from robench.core.errors import UsageError
from robench.data import load_dataset
from robench.evaluation.attack import attack
from robench.threats.threat import Threat
from robench.threats.transformations import Transformation
from robench.threats.transformations.jpeg import dct_basis
from tests.attacks.driver import RowByRow, answer, check_lanes, problem, rows_of
from tests.combinations import first_only
from tests.engine.test_promises import MemoryStore, assert_same, play
from tests.models import Linear, images, small_net

SPECS = 'apgd(steps=5)+apgd(steps=4, loss="dlr", targets=2)+pgd(steps=4, restarts=2)'


def built(spec: str, threat: str) -> Any:
    return build_attacks([spec], Threat.parse(threat))[0][1]


def least_low_frequency(model: Linear, x: torch.Tensor, y: torch.Tensor, kept: int) -> torch.Tensor:
    """L2 distance to another class using the lowest `kept` squared frequencies, where a linear model stays linear."""
    waves = dct_basis(8)[:kept]
    weight = model.weight.detach().double().view(-1, 3, 8, 8)
    inside = torch.einsum("kcij,ui,vj->kcuv", weight, waves, waves).flatten(1)
    logits = model(x).detach().double()
    gap = logits.gather(1, y[:, None]) - logits
    length = (inside[None] - inside[y][:, None]).norm(dim=2)
    return (gap / length.clamp_min(1e-30)).scatter(1, y[:, None], math.inf).amin(1)


@pytest.mark.parametrize(
    "spec", ["apgd", 'pgd(steps=60, loss="margin", targets=3)', "fab(steps=20, targets=3)"]
)
def test_a_linear_model_is_fooled_just_beyond_the_closed_form(spec):
    model, x = Linear(4, (3, 8, 8)), images(6)
    y = model(x).argmax(1)
    least = least_low_frequency(model, x, y, 4)
    for i in (0, 4):
        for factor, robust in ((0.98, True), (1.06, False)):
            threat = f"low-frequency(ratio=0.5):{factor * float(least[i]):.7f}"
            result = attack(spec, model, x[i : i + 1], y[i : i + 1], threat=threat)
            assert bool(result.robust[0]) == robust, (i, factor)
            assert result.health == []


@pytest.mark.parametrize(("threat", "points"), [("rotation:30", "(5,)"), ("translation:3", "(5, 5)")])
def test_a_grid_of_other_parameters_is_refused_with_one_that_fits(threat, points):
    model, x = small_net(), images(2)
    with pytest.raises(UsageError, match=rf"such as grid\(points={re.escape(points)}\)$"):
        attack("grid", model, x, model(x).argmax(1), threat=threat)
    attack(f"grid(points={points})", model, x, model(x).argmax(1), threat=threat)


def test_the_grid_includes_every_corner_of_the_box():
    asked, task = [], problem("spatial:30", 3)
    model, x = Linear(3, (3, 8, 8)), images(2)
    rows, grid = rows_of(model, x), built("grid(points=(3, 2, 2))", "spatial:30")
    state = grid.init(task, rows)
    while not bool(grid.finished(state).all()):
        ask = grid.ask(task, rows, state)
        asked.append(tuple(ask.point[0].flatten().tolist()))
        state = grid.tell(task, rows, state, answer(model, ask, rows))
    corners = [(a, b, c) for a in (-30.0, 0.0, 30.0) for b in (-30.0, 30.0) for c in (-30.0, 30.0)]
    assert sorted(asked) == [pytest.approx(corner, abs=1e-5) for corner in corners]


def test_penalised_attacks_maximise_the_loss_minus_the_penalty():
    threat = Threat.parse("stadv(smooth=0.05):1")
    model, x = RowByRow(4), images(3)
    rows, task = rows_of(model, x), problem(str(threat), 4)
    pgd = built("pgd", str(threat))
    state = pgd.init(task, rows)
    ask = pgd.ask(task, rows, state)
    told = pgd.tell(task, rows, state, pgd.pull_back(task, rows, state, answer(model, ask, rows)))
    theta = ask.point.double().requires_grad_()
    image = threat.coordinates.apply(x.double(), theta, rows.sample)
    loss = torch.nn.functional.cross_entropy(model.double()(image), rows.y, reduction="none")
    across = (theta[..., 1:] - theta[..., :-1]).square().sum(1).add(1e-10).sqrt().sum((1, 2))
    down = (theta[..., 1:, :] - theta[..., :-1, :]).square().sum(1).add(1e-10).sqrt().sum((1, 2))
    whole = loss - 0.05 * 2 * (across + down)
    assert torch.allclose(told.best_loss.double(), whole, rtol=1e-4)
    (grad,) = torch.autograd.grad(whole.sum(), theta)
    # The step of PGD is 2.5 eps / steps along the sign, inside the ball.
    free = (ask.point.abs() < 0.8) & (grad.abs() > 1e-3)
    moved = pgd._theta(told.x) - ask.point
    assert torch.allclose(moved[free], (0.125 * grad.sign().float())[free], atol=1e-5)


@pytest.mark.parametrize("name", ["stadv", "recolor(grid=(4, 8, 8))"])
def test_no_penalty_is_part_of_a_threat(name, digits):
    assert built("pgd", f"{name}:0.1").ascends
    defense, data = digits
    penalised = f"{name[:-1]}, smooth=0.05)" if "(" in name else f"{name}(smooth=0.05)"
    alone, with_penalty = (
        attack("pgd(steps=10, random_start=False)", defense, data.x, data.y, threat=f"{each}:0.5")
        for each in (name, penalised)
    )
    assert alone.robust_accuracy <= with_penalty.robust_accuracy
    if name == "stadv":
        # The cross-entropy saturates but the penalty does not, so the step follows the sign of the penalty.
        assert alone.robust_accuracy < with_penalty.robust_accuracy - 0.3


def test_zero_gradients_of_parameters_are_warned_about(digits):
    """Fog grows with the square of its parameters, so its gradient is zero without fog."""
    defense, data = digits
    codes = [
        [mark.code for mark in attack(spec, defense, data.x, data.y, threat="fog:0.4").health]
        for spec in ("fgsm", "pgd(steps=10, random_start=False)", "pgd(steps=10)")
    ]
    assert "zero-gradients" in codes[0] and "zero-gradients" in codes[1] and codes[2] == []


@pytest.mark.parametrize(
    "threat", ["elastic:0.5", "pixel:4", "stadv:1", "low-frequency(ratio=0.25):1.5", "fog:0.4"]
)
def test_minimum_norm_attacks_work_on_parameters(threat, digits):
    defense, data = digits
    far, near = (
        attack(spec, defense, data.x[:6], data.y[:6], threat=threat)
        for spec in ("cw(steps=8, rounds=2)", "cw(steps=8, rounds=2, minimise=True)")
    )
    assert torch.equal(far.robust, near.robust) or near.robust_accuracy < far.robust_accuracy
    assert (near.distance <= far.distance + 1e-6)[~far.robust].all()


@pytest.mark.parametrize(
    "threat", ["fog:0.5", "elastic:0.4", "pixel(size=2):3", "stadv:1", "gabor(kernel=5):0.1"]
)
def test_rows_are_independent(threat):
    model, x = RowByRow(4), images(4)
    check_lanes(model, built("apgd(steps=8)", threat), problem(threat, 4), rows_of(model, x), 8)


THREATS = ["fog:0.1", "gabor(kernel=5, density=0.3):0.002", "L0:1"]


@pytest.mark.parametrize("threat", THREATS)
def test_an_image_alone_gets_the_same_result_as_in_a_batch(threat):
    specs = "sparse-rs(queries=25)+sigma-zero(steps=20)" if threat.startswith("L0") else SPECS
    whole = play(specs=specs, threat=threat, n=12)
    assert 0 < whole.robust_accuracy < 0.9
    for i in (2, 11):
        assert_same(whole, play(torch.tensor([i]), specs=specs, threat=threat), rows=slice(i, i + 1))
    other = play(lanes=5, specs=specs, threat=threat, n=12)
    assert (whole.robust == other.robust).float().mean() >= 0.95


@pytest.mark.parametrize("threat", THREATS[1:])
def test_a_resumed_run_gives_the_same_result(threat):
    specs = "sparse-rs(queries=25)+sigma-zero(steps=20)" if threat.startswith("L0") else SPECS
    whole, store, stops, outcome = play(specs=specs, threat=threat, n=12), MemoryStore(9), 0, None
    while outcome is None:
        try:
            outcome = play(store=store, specs=specs, threat=threat, n=12)
        except KeyboardInterrupt:
            stops, store.left = stops + 1, 9
    assert stops > 2
    assert_same(whole, outcome)
    assert whole.points is None or torch.equal(whole.points, outcome.points)


@pytest.fixture(scope="module")
def digits():
    return robench.load_defense("pgd-at", dataset="digits"), load_dataset("digits", "test", 24)


@pytest.mark.parametrize(
    "case",
    first_only(
        4,
        [
            ("jpeg", (0.01, 0.15)),
            ("rotation", (10, 40)),
            ("spatial(shift=2)", (5, 20)),
            ("stadv", (0.3, 2)),
            ("blur(kernel=15, spread=3)", (0.1, 1)),
            ("elastic", (0.05, 0.5)),
            ("fog", (0.1, 0.8)),
            ("gabor", (0.01, 0.1)),
            ("low-frequency(ratio=0.25)", (0.5, 4)),
            ("pixel", (1, 6)),
            ("recolor(grid=(4, 8, 8))", (0.03, 0.3)),
            ("snow(grid=4)", (1, 4)),
            ("translation", (0.5, 3)),
        ],
    ),
    ids=lambda case: case[0],
)
def test_more_budget_fools_at_least_as_many_digits(digits, case):
    defense, data = digits
    name, radii = case
    specs = {"rotation": "grid(points=(9,))", "spatial(shift=2)": "grid(points=(5, 3, 3))"}
    left = []
    for eps in radii:
        threat = Threat.parse(f"{name}:{eps}")
        result = attack(specs.get(name, "apgd(steps=12)"), defense, data.x, data.y, threat=threat)
        fooled = torch.tensor([by not in ("", "clean") for by in result.fooled_by])
        points = result.points[fooled]
        assert threat.contains(data.x[fooled], points).all()
        assert torch.equal(
            threat.image(data.x[fooled], points, torch.arange(24)[fooled]), result.x_adv[fooled]
        )
        assert (defense(result.x_adv).argmax(1)[fooled] != data.y[fooled]).all()
        left.append(int(result.robust.sum()))
    assert left == sorted(left, reverse=True) and left[-1] < left[0]


@pytest.mark.parametrize(
    ("spec", "threat", "says"),
    [
        (
            "square",
            "fog:0.4",
            "square searches images, but fog:0.4 is a threat on parameters: use for example pgd or apgd",
        ),
        (
            "apgd-l1",
            "fog:0.4",
            "apgd-l1 is defined in L1: fog:0.4, in Linf of its parameters, is not among them",
        ),
        ("pgd", "fgo:0.4", 'unknown norm or transformation "fgo": did you mean fog'),
        ("pgd", "fog(thickness=2):0.4", "fog takes no argument thickness: it takes decay"),
        ("pgd", "fog:0", "expected a finite number above 0"),
        ("pgd", "fog(:0.4", "malformed threat"),
        ("pgd", "snow(length=4):2", "cannot be built: expected an odd length"),
        ("pgd", "blur:0.3", "kernels of 17 and 9 are too large for 8 px"),
        ("grid", "fog:0.4", "is for 3 parameters, and this threat has 64"),
    ],
)
def test_mistakes_are_refused_in_one_line(spec, threat, says):
    model, x = Linear(10, (3, 8, 8)), images(2)
    with pytest.raises(UsageError) as error:
        attack(spec, model, x, model(x).argmax(1), threat=threat)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_the_name_is_canonical():
    assert str(Threat.parse("snow( power=4, grid=4 ):2")) == "snow(grid=4):2"
    assert Threat.parse("snow(grid=4):2") == Threat.parse(str(Threat.parse("snow(power=4, grid=4):2")))
    assert Threat.parse("fog:0.4") != Threat.parse("fog(decay=2.0):0.4")


def test_a_transformation_with_nan_gradients_is_warned_about():
    """A square root at 0: the image is finite, but its gradient in the parameter is not."""

    class Root(Transformation):
        def shape(self, channels, height, width):
            return 1, 1, 1

        def apply(self, x, theta, sample):
            return x + theta + 0 * (theta - theta.detach()).sqrt()

    model, x = Linear(3, (3, 8, 8)), images(3)
    threat = Threat("Linf", 0.5, "0.5", "root", Root())
    found = attack("pgd(steps=3)", model, x, model(x).argmax(1), threat=threat)
    assert {"nonfinite-gradients", "zero-gradients"} <= {mark.code for mark in found.health}

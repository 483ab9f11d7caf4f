"""Square on linear models, and its parts compared with the papers."""

import math

import pytest
import torch

from robench.attacks import square
from robench.evaluation.attack import attack
from robench.threats.threat import Threat
from tests.engine.runs import run_of
from tests.models import Linear, images


# In L2 and L1 windows follow white-noise weights less closely: the reference implementation succeeds on none of these
# at twice the distance, because its windows exclude the last row and column.
@pytest.mark.parametrize(
    ("norm", "factor", "classes", "restarts"),
    [
        ("Linf", 1.5, 2, 1),
        ("L2", 2.0, 10, 2),
        ("L1", 2.0, 2, 1),
        pytest.param("Linf", 1.5, 10, 2, marks=pytest.mark.slow),
        pytest.param("L2", 2.0, 2, 1, marks=pytest.mark.slow),
        pytest.param("L1", 2.0, 10, 2, marks=pytest.mark.slow),
    ],
)
def test_square_succeeds_at_a_small_multiple_of_the_distance(norm, factor, classes, restarts):
    model, x = Linear(classes, (3, 8, 8)), images(6)
    y = model(x).argmax(1)
    distance = model.distances(x, y, norm)
    for i in range(0, 6, 2):
        threat = Threat.parse(f"{norm}:{factor * float(distance[i]):.9f}")
        spec = f"square(queries=2000, restarts={restarts})"
        result = attack(spec, model, x[i : i + 1], y[i : i + 1], threat=threat, batch_size=16)
        assert not result.robust[0], float(distance[i])
        assert threat.contains(x[i : i + 1], result.x_adv)[0]


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_square_finds_nothing_before_the_boundary(norm):
    model, x = Linear(10, (3, 8, 8)), images(6)
    y = model(x).argmax(1)
    eps = 0.95 * float(model.distances(x, y, norm).min())
    result = attack("square(queries=100)", model, x, y, threat=f"{norm}:{eps:.9f}")
    assert result.robust.all() and (result.forward == 101).all() and (result.backward == 0).all()


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_every_query_is_on_the_surface_of_the_ball(norm, monkeypatch):
    model, x = Linear(3, (3, 8, 8)), images(4)
    y = model(x).argmax(1)
    threat = Threat.parse(f"{norm}:{0.5 * float(model.distances(x, y, norm).min()):.9f}")
    asked, ask = [], square.Square.ask

    def watch(self, problem, rows, state):
        question = ask(self, problem, rows, state)
        asked.append((rows.x, question.x))
        return question

    monkeypatch.setattr(square.Square, "ask", watch)
    attack("square(queries=60)", model, x, y, threat=threat, batch_size=4)
    assert len(asked) == 61
    for clean, point in asked:
        assert threat.contains(clean, point, threat.slack).all()
        assert (threat.distance(clean, point) > 0.99 * threat.eps).all()


def test_queries_ahead_change_nothing():
    model, x = Linear(10, (3, 8, 8)), images(20)
    y = model(x).argmax(1)
    eps = 1.2 * float(model.distances(x, y, "Linf").median())
    full = attack("square(queries=200)", model, x, y, threat=f"Linf:{eps:.9f}", batch_size=20)
    assert 0 < full.robust.sum() < 20
    for i in range(0, 20, 4):
        # Alone in 20 lanes, an image makes its next twenty queries at once.
        alone = attack_one(model, x, y, i, eps)
        assert torch.equal(alone.x_adv[0], full.x_adv[i])
        assert int(alone.forward[0]) == int(full.forward[i]) and int(alone.steps[0]) == int(full.steps[i])


def attack_one(model, x, y, i, eps):
    from robench.attacks.build import build_attacks

    threat = Threat.parse(f"Linf:{eps:.9f}")
    built = build_attacks(["square(queries=200)"], threat)
    ids = torch.tensor([i])
    run = run_of(model, built, x[ids], y[ids], ids, threat, 0, batch_size=20)
    return run.outcome()


def test_windows_shrink_as_in_the_paper():
    sides = square._sides(5000, 0.8, 32, 32, True, torch.device("cpu"))
    for query, share in [
        (0, 0.8),
        (10, 0.8),
        (11, 0.4),
        (51, 0.2),
        (201, 0.1),
        (501, 0.05),
        (4001, 0.8 / 128),
    ]:
        assert int(sides[query + 1]) == max(round(math.sqrt(share) * 32), 1)
    odd = square._sides(5000, 0.8, 32, 32, False, torch.device("cpu"))
    assert int(odd.min()) == 3 and ((odd % 2 == 1) | (odd == 32)).all()


@pytest.mark.parametrize("power", [1, 2])
def test_patterns_have_unit_norm_and_two_opposite_halves(power):
    table = square._patterns(9, power, torch.device("cpu"))
    for side in (3, 5, 9):
        assert float(table[side].abs().pow(power).sum()) == pytest.approx(1, rel=1e-5)
        assert (table[side, : side // 2, :side] > 0).all() and (
            table[side, side // 2 : side, :side] < 0
        ).all()
        assert (table[side, side:] == 0).all() and (table[side, :, side:] == 0).all()


def test_windows_reach_every_place():
    word = torch.arange(0, 2**32, 2**18)
    top, left = square._corner(word, torch.full_like(word, 3), 8, 8)
    assert sorted(set(top.tolist())) == list(range(6)) and int(left.min()) == 0
    low = torch.arange(2**16)
    _, left = square._corner(low, torch.full_like(low, 3), 8, 8)
    assert torch.bincount(left, minlength=6).tolist() == pytest.approx([2**16 / 6] * 6, abs=1)

"""Gradient attacks on linear models, for which the smallest perturbation has a closed form."""

import pytest
import torch

from robench.evaluation.attack import attack
from robench.threats.threat import Threat
from tests.combinations import each_once
from tests.models import Linear, images


def threat_at(norm: str, eps: float) -> Threat:
    return Threat.parse(f"{norm}:{eps:.9f}")


@pytest.mark.parametrize(
    ("norm", "classes", "spec"),
    each_once(
        ["Linf", "L2"],
        [2, 3, 10],
        [
            "apgd",
            'apgd(loss="dlr")',
            'apgd(loss="margin", restarts=2)',
            'apgd(loss="dlr", targets=9)',
            'apgd(loss="ce", targets=2, restarts=2)',
        ],
    ),
)
def test_apgd_succeeds_just_beyond_the_boundary(norm, classes, spec):
    model, x = Linear(classes, (3, 8, 8)), images(12)
    y = model(x).argmax(1)
    distance = model.distances(x, y, norm)
    for i, batch_size in ((0, 5), (4, 1), (8, 5)):
        eps = 1.05 * float(distance[i])
        result = attack(
            spec, model, x[i : i + 1], y[i : i + 1], threat=threat_at(norm, eps), batch_size=batch_size
        )
        assert not result.robust[0]
        assert float(result.distance[0]) <= eps * (1 + 1e-5)
        assert float(result.x_adv.min()) >= 0 and float(result.x_adv.max()) <= 1


# With several classes the reference also misses the nearest one at times (7 of 24 at 1.05, 1 at 1.1).
@pytest.mark.parametrize(
    ("case", "spec"),
    each_once(
        [(2, 1.05), (3, 1.5), (10, 1.5)],
        [
            "apgd-l1(restarts=2)",
            'apgd-l1(loss="dlr")',
            'apgd-l1(loss="margin")',
            'apgd-l1(loss="dlr", targets=5)',
        ],
    ),
)
def test_apgd_succeeds_just_beyond_the_boundary_in_l1(case, spec):
    classes, factor = case
    model, x = Linear(classes, (3, 8, 8)), images(12)
    y = model(x).argmax(1)
    distance = model.distances(x, y, "L1")
    for i in (0, 6):
        eps = factor * float(distance[i])
        threat = threat_at("L1", eps)
        result = attack(spec, model, x[i : i + 1], y[i : i + 1], threat=threat, batch_size=5)
        assert not result.robust[0], (eps, i)
        assert threat.contains(x[i : i + 1], result.x_adv)[0]


def test_apgd_in_l1_has_the_cost_of_the_paper():
    model, x = Linear(10, (3, 8, 8)), images(3)
    result = attack("apgd-l1(restarts=2)", model, x, model(x).argmax(1), threat="L1:0.000001")
    assert (result.forward == 2 * 103).all() and (result.backward == 2 * 103).all()


@pytest.mark.parametrize(
    ("norm", "spec"),
    each_once(["Linf", "L2"], ["apgd", "pgd(steps=50)", "fgsm", 'apgd(loss="dlr", targets=9)']),
)
def test_nothing_is_found_before_the_boundary(norm, spec):
    model, x = Linear(10, (3, 8, 8)), images(4)
    y = model(x).argmax(1)
    eps = 0.95 * float(model.distances(x, y, norm).min())
    result = attack(spec, model, x, y, threat=threat_at(norm, eps))
    assert result.robust.all()
    assert torch.equal(result.x_adv, x)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_one_step_is_optimal_for_two_classes(norm):
    model, x = Linear(2, (3, 8, 8)), images(12)
    y = model(x).argmax(1)
    distance = model.distances(x, y, norm)
    for i in range(12):
        eps = 1.01 * float(distance[i])
        result = attack('fgsm(loss="margin")', model, x[i : i + 1], y[i : i + 1], threat=threat_at(norm, eps))
        assert not result.robust[0]
        assert result.passes == {"forward": 2, "backward": 2}


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_pgd_succeeds_beyond_the_boundary(norm):
    model, x = Linear(10, (3, 8, 8)), images(12)
    y = model(x).argmax(1)
    distance = model.distances(x, y, norm)
    for i in range(0, 12, 3):
        eps = 1.1 * float(distance[i])
        spec = 'pgd(steps=50, loss="margin", targets=9)'
        result = attack(spec, model, x[i : i + 1], y[i : i + 1], threat=threat_at(norm, eps))
        assert not result.robust[0]
        assert float(result.distance[0]) <= eps * (1 + 1e-5)

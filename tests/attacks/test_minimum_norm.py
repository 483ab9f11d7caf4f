"""FAB and C&W against linear models: the perturbation they find is near the least there is."""

import pytest
import torch

from robench.direct import attack
from robench.threat import Threat
from tests.conftest import Linear, images

SPECS = [
    ("fab", ("Linf", "L2", "L1")),
    ("fab(targets=9)", ("Linf", "L2", "L1")),
    ("fab(restarts=2)", ("Linf", "L2", "L1")),
    ("cw", ("Linf", "L2")),
    ("cw(targets=9)", ("Linf", "L2")),
]


@pytest.mark.parametrize(("spec", "norm"), [(spec, norm) for spec, norms in SPECS for norm in norms])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_finds_a_perturbation_within_a_quarter_of_the_least(spec, norm, classes):
    model, x = Linear(classes, (3, 8, 8)), images(8)
    y = model(x).argmax(1)
    distance = model.distances(x, y, norm)
    for i in range(0, 8, 3):
        threat = Threat.parse(f"{norm}:{1.25 * float(distance[i]):.9f}")
        result = attack(spec, model, x[i : i + 1], y[i : i + 1], threat=threat, batch_size=9)
        assert not result.robust[0], (float(distance[i]), i)
        assert threat.contains(x[i : i + 1], result.x_adv)[0]
        assert float(result.distance[0]) >= 0.999 * float(distance[i])


@pytest.mark.parametrize(("spec", "norm"), [(spec, norm) for spec, norms in SPECS for norm in norms])
def test_finds_nothing_short_of_the_boundary(spec, norm):
    model, x = Linear(10, (3, 8, 8)), images(6)
    y = model(x).argmax(1)
    eps = 0.95 * float(model.distances(x, y, norm).min())
    assert attack(spec, model, x, y, threat=f"{norm}:{eps:.9f}").robust.all()


def test_fab_needs_one_forward_a_step():
    model, x = Linear(10, (3, 8, 8)), images(6)
    y = model(x).argmax(1)
    eps = 0.5 * float(model.distances(x, y, "Linf").min())
    result = attack("fab(targets=1)", model, x, y, threat=f"Linf:{eps:.9f}")
    # A linear model's boundary is reached at the first step and left again at each: two questions a step.
    assert (result.forward <= 201).all() and (result.backward == result.forward).all()
    far = attack("fab(targets=1)", model, x, y, threat="Linf:0.9")
    assert not far.robust.any() and (far.forward <= 3).all()
    assert torch.equal(far.steps, far.forward)

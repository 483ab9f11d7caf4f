"""PGD's step size, absolute and relative, and judging every iterate or only the last."""

import pytest
import torch
from torch import nn

from robench import attack, load_defense
from robench.attacks.pgd import PGD
from robench.core.errors import UsageError
from robench.data import load_dataset
from tests.attacks.driver import play, problem, rows_of
from tests.models import images, small_net


@pytest.fixture(scope="module")
def digits():
    data = load_dataset("digits", "test", 40)
    return data.x[:], data.y


def test_the_default_steps_and_the_point_of_the_highest_loss():
    """Steps of 2.5 eps / steps along the sign of the gradient, by hand, on a curved model."""
    model, x, steps, eps = small_net(), images(6), 8, 0.02
    rows = rows_of(model, x)
    pgd = PGD(steps=steps, random_start=False)
    asked, state = play(model, pgd, problem(f"Linf:{eps}", 10), rows, steps + 1)
    point, points, losses = x, [], []
    for _ in range(steps + 1):
        z = point.clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(z), rows.y, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), z)
        points.append(point)
        losses.append(loss.detach())
        point = (point + 2.5 * eps / steps * grad.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    assert torch.allclose(torch.stack([torch.stack(each) for each in asked]), torch.stack(points), atol=1e-6)
    highest = torch.stack(losses).argmax(0)
    assert (highest > 0).all()
    assert torch.allclose(state.best, torch.stack(points)[highest, torch.arange(6)], atol=1e-6)


class Window(nn.Module):
    """Fooled only while the mean of the image lies in a window: an ascending sequence enters and leaves it."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        inside = ((mean > 0.52) & (mean < 0.56)).float()
        return torch.stack([5 - 9 * inside - mean, mean], 1)


@pytest.fixture
def passed_through():
    """Images whose third to fifth iterates lie in the window and whose last lies beyond it."""
    return torch.full((4, 3, 4, 4), 0.5), torch.zeros(4, dtype=torch.int64)


def test_by_default_every_iterate_counts_and_with_last_only_the_last(passed_through):
    x, y = passed_through
    walk = "steps=10, rel_step_size=0.1, random_start=False"
    every = attack(f"pgd({walk})", Window(), x, y, threat="Linf:0.1")
    assert not every.robust.any()
    last = attack(f"pgd({walk}, last=True)", Window(), x, y, threat="Linf:0.1")
    assert last.robust.all()
    short = attack(
        "pgd(steps=4, step_size=0.01, random_start=False, last=True)", Window(), x, y, threat="Linf:0.1"
    )
    assert not short.robust.any()


@pytest.mark.parametrize("threat", ["Linf:0.1", "L2:1"])
def test_with_last_the_image_returned_is_the_last_iterate(digits, threat):
    """Compared with a direct implementation of PGD."""
    x, y = digits
    model = load_defense("pgd-at-digits")
    result = attack(
        "pgd(steps=5, rel_step_size=0.5, random_start=False, last=True)", model, x, y, threat=threat
    )
    norm, eps = threat.split(":")[0], float(threat.split(":")[1])
    point = x.clone()
    for _ in range(5):
        point.requires_grad_()
        loss = nn.functional.cross_entropy(model(point), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, point)
        with torch.no_grad():
            if norm == "Linf":
                point = (point + eps / 2 * grad.sign()).clamp(x - eps, x + eps).clamp(0, 1)
            else:
                step = grad / (grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-12)
                delta = point + eps / 2 * step - x
                size = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                point = (x + delta * (eps / (size + 1e-12)).clamp(max=1)).clamp(0, 1)
    with torch.no_grad():
        fooled = model(point).argmax(1) != y
    assert 0 < int(fooled.sum()) < len(y)
    assert (~result.robust == fooled).float().mean() >= 0.95
    # Records store perturbations in whole steps.
    attacked = ~result.robust & (model(x).argmax(1) == y)
    assert (result.x_adv[attacked] - point[attacked]).abs().max() < eps / 100


def test_with_last_a_row_costs_exactly_its_steps(digits):
    x, y = digits
    model = load_defense("standard-digits")
    right = int((model(x).argmax(1) == y).sum())
    result = attack("pgd(steps=7, last=True)", model, x, y, threat="Linf:0.1")
    assert result.attacks[0].forward == result.attacks[0].backward == 7 * right


@pytest.mark.parametrize("knowledge", ["same", "other"])
def test_the_attacker_gets_no_feedback_with_last(digits, knowledge):
    """Results do not depend on the batch size or on how often the judge is called, surrogate or not."""
    x, y = digits
    model = load_defense("mimir-digits")
    precision = {"same": "fp32", "other": "bf16"}[knowledge]
    one, two = (
        attack(
            "pgd(steps=4, last=True)", model, x, y, threat="Linf:0.13", batch_size=size, precision=precision
        )
        for size in (16, 40)
    )
    if precision == "fp32":
        assert torch.equal(one.robust, two.robust)
    assert one.attacks[0].forward % 4 == two.attacks[0].forward % 4 == 0


def test_a_relative_step_is_the_absolute_one_times_the_radius(digits):
    x, y = digits
    model = load_defense("pgd-at-digits")
    specs = (
        "pgd(steps=5, step_size=0.03, random_start=False)",
        "pgd(rel_step_size=0.3, steps=5, random_start=False)",
    )
    one, two = (attack(spec, model, x, y, threat="Linf:0.1") for spec in specs)
    assert torch.equal(one.robust, two.robust) and torch.allclose(one.x_adv, two.x_adv, atol=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("rel_step_size=-0.1", "rel_step_size=-0.1: expected 0"),
        ("step_size=1e999", "step_size must be a finite number"),
        ("step_size=0.1, rel_step_size=0.1", "expected at most one of them"),
        ("last=1", "last=1: expected True or False"),
    ],
)
def test_inconsistent_settings_are_refused(digits, arguments, message):
    with pytest.raises(UsageError, match=message):
        attack(f"pgd({arguments})", load_defense("standard-digits"), *digits, threat="Linf:0.1")

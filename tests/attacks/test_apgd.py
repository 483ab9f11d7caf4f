"""APGD compared with a direct implementation of its algorithm, one image and one step at a time."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from robench.attacks.apgd import APGD
from tests.attacks.driver import RowByRow, play, problem, rows_of
from tests.models import images

STEPS = 60


def algorithm_1(
    model, x: Tensor, y: Tensor, points: list[Tensor], norm: str, eps: float, rho: float
) -> tuple[list[Tensor], int, int]:
    """Croce and Hein 2020, arXiv 2003.01690, Algorithm 1 with the whole-numbered checkpoints of its authors' code.

    Args:
        points: where the attack took its gradients. Each step starts from those before it, so rounding does not add up.

    Returns:
        The point that follows each of them; how often the step was halved; how often the search went back to a best
        point that was not its last one.
    """

    def project(z: Tensor) -> Tensor:
        delta = z - x
        if norm == "Linf":
            return (x + delta.clamp(-eps, eps)).clamp(0, 1)
        length = delta.norm()
        return (x + delta * min(1.0, eps / float(length)) if length else x).clamp(0, 1)

    def measure(z: Tensor) -> tuple[float, Tensor]:
        z = z.clone().requires_grad_()
        loss = F.cross_entropy(model(z[None]), y[None])
        (grad,) = torch.autograd.grad(loss, z)
        return float(loss.detach()), grad.sign() if norm == "Linf" else grad / (grad.norm() + 1e-12)

    following, losses, directions = [], [], []
    size, before, best, last_check = 2 * eps, points[0], 0, 0
    period, halved_last, best_at_check, halvings, returns = int(0.22 * STEPS), True, 0, 0, 0
    for k in range(STEPS + 1):
        loss, direction = measure(points[k])
        losses.append(loss)
        directions.append(direction)
        if loss > losses[best]:
            best = k
        here = k
        if k and k - last_check == period:
            rises = sum(losses[i + 1] > losses[i] for i in range(last_check, k))
            halve = rises <= rho * period or (not halved_last and losses[best] <= losses[best_at_check])
            if halve:
                size, here, halvings = size / 2, best, halvings + 1
                returns += best != k
            halved_last, best_at_check, last_check = halve, best, k
            period = max(period - int(0.03 * STEPS), int(0.06 * STEPS))
        at = points[here]
        stepped = project(at + size * directions[here])
        share = 0.75 if k else 1.0
        following.append(project(at + share * (stepped - at) + (1 - share) * (at - before)))
        before = at
    return following, halvings, returns


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.03), ("L2", 0.4)])
@pytest.mark.parametrize("rho", [0.75, 0.1])
def test_every_point_matches_the_algorithm(norm, eps, rho):
    model, x = RowByRow(4), images(6)
    rows, task = rows_of(model, x), problem(f"{norm}:{eps}", 4)
    asked, _ = play(model, APGD(steps=STEPS, rho=rho), task, rows, STEPS + 1)
    seen = []
    for lane in range(len(x)):
        points = [turn[lane] for turn in asked]
        following, halvings, returns = algorithm_1(model, x[lane], rows.y[lane], points, norm, eps, rho)
        seen.append((halvings, returns))
        for step in range(STEPS):
            torch.testing.assert_close(points[step + 1], following[step], rtol=0, atol=1e-6)
    # The rows must differ in where they halve and restart, or the test would not cover these cases.
    assert sum(halvings for halvings, _ in seen) >= 6 and sum(returns for _, returns in seen) >= 2

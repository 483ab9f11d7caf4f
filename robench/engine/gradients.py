"""Gradients of losses with respect to images."""

from collections.abc import Callable

import torch
from torch import Tensor

from robench.attacks._base import finite, where


def gradient(loss: Tensor, point: Tensor, retain: bool) -> Tensor:
    """The gradient of the sum of a loss (N,) at `point`; zero if the loss does not depend on it."""
    if not loss.requires_grad:
        return torch.zeros_like(point)
    # Of one number: given the gradient of many, torch imports sympy, which takes a quarter as long as importing torch.
    (grad,) = torch.autograd.grad(loss.sum(), point, retain_graph=retain, allow_unused=True)
    return torch.zeros_like(point) if grad is None else grad.float().contiguous()


def cheapest(
    cost_of: Callable[[Tensor, Tensor], Tensor], loss: Tensor, point: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient at `point` of the cheapest column of each row, see `Cheapest`; rows with NaN or infinite entries in
    any gradient, bool (S,); and the column, (S,)."""
    column = torch.zeros(len(loss), dtype=torch.int64, device=loss.device)
    lowest = torch.full((len(loss),), torch.inf, device=loss.device)
    best, any_broken = torch.zeros_like(point[: len(loss)]), column > 0
    for i, values in enumerate(loss.unbind(1)):
        grad = gradient(values, point, retain=i + 1 < loss.shape[1])
        grad, broken = finite(grad[: len(loss)])
        any_broken |= broken
        cost = cost_of(values.detach()[:, None], grad.flatten(1)[:, None])[:, 0]
        cheaper = cost < lowest if i else torch.ones_like(any_broken)
        best, lowest = where(cheaper, grad, best), torch.where(cheaper, cost, lowest)
        column = torch.where(cheaper, i, column)
    return best.detach(), any_broken, column

"""Attacks on the parameters of a transformation: query T(x, theta), and pull the gradient back through T."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, Attack, Contract, Problem, Rows, State, finite
from robench.attacks._objective_types import Cheapest, OnLogits
from robench.threats.threat import Threat
from robench.threats.transformations import Transformation


@dataclass(frozen=True)
class ParameterSpace(Attack[Any]):
    """An attack that searches parameters, scaled to [0, 1], in a ball around those that leave the image unchanged.

    Args:
        inner: the attack to run; its parameters (steps, targets, eot, ...) are also set on this one.
        threat: a threat whose coordinates are a transformation.
    """

    inner: Attack[Any]
    threat: Threat

    def __post_init__(self) -> None:
        for name in {*Contract.__annotations__, *(field.name for field in fields(self.inner))}:
            object.__setattr__(self, name, getattr(self.inner, name))
        # With a penalty the attack does not maximize the loss that the engine sees.
        object.__setattr__(self, "ascends", self.inner.ascends and not self._change.penalised)
        # With few parameters, gradient-free search beats gradient attacks even without masked gradients.
        object.__setattr__(self, "gradient_free", False)

    @property
    def _change(self) -> Transformation:
        assert isinstance(self.threat.coordinates, Transformation)
        return self.threat.coordinates

    @property
    def norms(self) -> tuple[str, ...]:
        return self.inner.norms

    @property
    def judged_at_end(self) -> bool:
        return self.inner.judged_at_end

    @property
    def num_queries(self) -> int:
        return self.inner.num_queries

    def ranks(self, num_classes: int) -> int:
        return self.inner.ranks(num_classes)

    def references(self, run: Rows, rows: Rows) -> Tensor | None:
        return self.inner.references(run, rows)

    def init(self, problem: Problem, rows: Rows) -> State:
        return self.inner.init(*self._scaled(problem, rows))

    def ask(self, problem: Problem, rows: Rows, state: State) -> Ask:
        query = self.inner.ask(*self._scaled(problem, rows), state)
        with torch.no_grad():
            theta = self._theta(query.x)
            objective = query.objective
            # Costs are those of gradients in the parameters, which `pull_back` computes from all of the image's.
            objective = (
                OnLogits(objective.value, objective.given) if isinstance(objective, Cheapest) else objective
            )
            return replace(query, x=self._image(rows, theta), objective=objective, point=theta)

    def pull_back(self, problem: Problem, rows: Rows, state: State, answer: Answer) -> Answer:
        z = self.inner.ask(*self._scaled(problem, rows), state).x
        if answer.grad.numel():
            answer = self._pulled(rows, z, answer)
        return replace(answer, x=z)

    def tell(self, problem: Problem, rows: Rows, state: State, answer: Answer) -> State:
        return self.inner.tell(*self._scaled(problem, rows), state, answer)

    def probes(self, state: State) -> Tensor | None:
        return self.inner.probes(state)

    def finished(self, state: State) -> Tensor:
        return self.inner.finished(state)

    def best(self, state: State) -> Tensor:
        return self._theta(self.inner.best(state))

    # Conversion between parameters and the [0, 1] range of the inner attack.

    @property
    def _scale(self) -> tuple[float, float]:
        """The position of zero parameters in [0, 1], and the scale of one parameter unit."""
        low, high = self.threat.coordinates.low, self.threat.coordinates.high
        if low == -math.inf:
            return 0.5, 0.5 / self.threat.eps
        return 0.0, 1 / min(high, self.threat.eps) if self.threat.norm == "Linf" else 1 / high

    def _scaled(self, problem: Problem, rows: Rows) -> tuple[Problem, Rows]:
        centre, unit = self._scale
        ball = Threat(self.threat.norm, unit * self.threat.eps, self.threat.text)
        middle = torch.full_like(self.threat.origin(rows.x), centre)
        return replace(problem, threat=ball), replace(rows, x=middle)

    def _theta(self, z: Tensor) -> Tensor:
        centre, unit = self._scale
        return ((z - centre) / unit).clamp(self.threat.coordinates.low, self.threat.coordinates.high)

    def _image(self, rows: Rows, theta: Tensor) -> Tensor:
        return self._change.apply(rows.x, theta, rows.sample).clamp(0, 1)

    def _pulled(self, rows: Rows, z: Tensor, answer: Answer) -> Answer:
        """The answer with gradients with respect to `z`, and with the penalty of the transformation subtracted."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            theta = self._theta(z)
            image = self._image(rows, theta)
            if answer.loss.dim() == 2:
                grad = torch.stack([_pull(image, z, g) for g in answer.grad.unbind(1)], 1)
            else:
                grad = _pull(image, z, answer.grad)
            loss = answer.loss
            if self._change.penalised and loss.dim() == 1:
                cost = self._change.penalty(theta)
                (rise,) = torch.autograd.grad(cost.sum(), z)
                loss, grad = loss - cost.detach(), grad - rise
        grad, broken = finite(grad)
        if answer.broken is not None:
            broken |= answer.broken
        return replace(answer, loss=loss, grad=grad, broken=broken)


def _pull(image: Tensor, z: Tensor, grad: Tensor) -> Tensor:
    (pulled,) = torch.autograd.grad(image, z, grad.to(image.dtype), retain_graph=True)
    return pulled

"""Attacks that take the steps of another attack with a different objective."""

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from robench.attacks._base import Answer, Ask, Attack, Objective, OnFeatures, Problem, Rows, State

S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class CustomObjective(Attack[S]):
    """Base of attacks that combine the state machine of `base_attack` with their own `objective`."""

    def base_attack(self, eps: float) -> Attack[S]:
        """The attack whose steps are taken, for radius `eps`."""
        raise NotImplementedError

    def objective(self, problem: Problem, rows: Rows, state: S) -> Objective | OnFeatures:
        """The objective to maximize."""
        raise NotImplementedError

    @property
    def norms(self) -> tuple[str, ...]:
        return self.base_attack(1.0).norms

    def init(self, problem: Problem, rows: Rows) -> S:
        return self.base_attack(problem.threat.eps).init(problem, rows)

    def ask(self, problem: Problem, rows: Rows, state: S) -> Ask:
        point = self.base_attack(problem.threat.eps).ask(problem, rows, state).x
        return Ask(point, self.objective(problem, rows, state))

    def tell(self, problem: Problem, rows: Rows, state: S, answer: Answer) -> S:
        return self.base_attack(problem.threat.eps).tell(problem, rows, state, answer)

    def finished(self, state: S) -> Tensor:
        return self.base_attack(1.0).finished(state)

    def best(self, state: S) -> Tensor:
        return self.base_attack(1.0).best(state)

"""Attacks that move as another does and differ in what they climb."""

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from robench.attacks._base import Answer, Ask, Attack, Objective, OnFeatures, Problem, Rows, State

S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class Steered(Attack[S]):
    """Base of attacks with another's state machine and an objective of their own; gives `mover` and `uphill`."""

    def mover(self, eps: float) -> Attack[S]:
        """The attack whose steps are taken, for that radius."""
        raise NotImplementedError

    def uphill(self, problem: Problem, rows: Rows, state: S) -> Objective | OnFeatures:
        """What is maximised."""
        raise NotImplementedError

    @property
    def norms(self) -> tuple[str, ...]:
        return self.mover(1.0).norms

    def init(self, problem: Problem, rows: Rows) -> S:
        return self.mover(problem.threat.eps).init(problem, rows)

    def ask(self, problem: Problem, rows: Rows, state: S) -> Ask:
        mover = self.mover(problem.threat.eps)
        return Ask(mover.ask(problem, rows, state).x, self.uphill(problem, rows, state))

    def tell(self, problem: Problem, rows: Rows, state: S, answer: Answer) -> S:
        return self.mover(problem.threat.eps).tell(problem, rows, state, answer)

    def finished(self, state: S) -> Tensor:
        return self.mover(1.0).finished(state)

    def best(self, state: S) -> Tensor:
        return self.mover(1.0).best(state)

"""Explaining and harnessing adversarial examples (Goodfellow et al. 2015, arXiv 1412.6572, section 4)."""

from dataclasses import dataclass

from torch import Tensor

from robench.attacks._base import Answer, Attack, Problem, Rows
from robench.attacks.pgd import PGD, PGDState
from robench.core.registry import attacks


@attacks.register("fgsm")
@dataclass(frozen=True)
class FGSM(Attack[PGDState]):
    """One step of size eps along the sign of the gradient (Linf), or along the gradient (L2).

    It is implemented as one step of PGD from the clean image.

    Args:
        loss: "ce", "dlr" or "margin".
        eot: draws of a randomized surrogate averaged for the gradient.
    """

    loss: str = "ce"
    eot: int = 1

    def _pgd(self, problem: Problem) -> PGD:
        return PGD(self.loss, steps=1, step_size=problem.threat.eps, random_start=False, eot=self.eot)

    @property
    def norms(self) -> tuple[str, ...]:
        return ("Linf", "L2")

    def init(self, problem: Problem, rows: Rows) -> PGDState:
        return self._pgd(problem).init(problem, rows)

    def ask(self, problem: Problem, rows: Rows, state: PGDState):
        return self._pgd(problem).ask(problem, rows, state)

    def tell(self, problem: Problem, rows: Rows, state: PGDState, answer: Answer) -> PGDState:
        return self._pgd(problem).tell(problem, rows, state, answer)

    def finished(self, state: PGDState) -> Tensor:
        return state.step > 1

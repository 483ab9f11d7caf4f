"""Boosting adversarial attacks with momentum (Dong et al. 2018, arXiv 1710.06081).

It can be combined with input diversity (DI) and translation invariance (TI), each in a separate file. The combination
of both is the strongest of this family of transfer attacks.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks._base import Answer, Ask, Attack, Problem, Rows, State, spread, where
from robench.attacks._input_diversity import Resizing
from robench.attacks._losses import check_loss, into_ball, normalize, objective
from robench.attacks._translation_invariance import smoothed
from robench.core.registry import attacks


@dataclass(frozen=True)
class MIFGSMState(State):
    """The next point, the accumulated gradient, and the number of answers."""

    x: Tensor
    momentum: Tensor
    step: Tensor
    target: Tensor


@attacks.register("mifgsm")
@dataclass(frozen=True)
class MIFGSM(Attack[MIFGSMState]):
    """MI-FGSM in Linf and L2, with DI and TI: an attack for transfer (`--knowledge transfer:NAME`).

    Without feedback from the judge all steps are taken, even if the surrogate is fooled earlier, and the last point is
    judged.

    Args:
        loss: "ce", "dlr" or "margin".
        steps: iterations, with one forward and one backward pass each and one more of both at the end.
        step_size: step size, in [0, 1] pixel values; 0 for eps / steps, as published.
        momentum: decay factor of the accumulated gradient, the paper's mu.
        diversity: probability of evaluating a randomly resized and padded image, arXiv 1803.06978 (0.5 there).
        translation: largest shift in pixels over which the gradient is averaged, arXiv 1904.02884 (7 there, at
            299 px); 0 for none.
        targets: number of target classes, most likely first; 0 for the untargeted loss.
        eot: draws of a randomized surrogate averaged for each gradient.
    """

    in_pixels: ClassVar[bool] = True
    transfers: ClassVar[bool] = True

    loss: str = "ce"
    steps: int = 10
    step_size: float = 0.0
    momentum: float = 1.0
    diversity: float = 0.0
    translation: int = 0
    targets: int = 0
    eot: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss)
        if self.step_size < 0 or self.momentum < 0:
            raise ValueError(f"step_size={self.step_size!r}, momentum={self.momentum!r}: expected 0 or more")
        if not 0 <= self.diversity <= 1:
            raise ValueError(f"diversity={self.diversity!r}: expected a probability in [0, 1]")
        if not isinstance(self.translation, int) or self.translation < 0:
            raise ValueError(
                f"translation={self.translation!r}: expected a whole number of pixels, 0 for none"
            )

    @property
    def norms(self) -> tuple[str, ...]:
        return ("Linf", "L2")

    def init(self, problem: Problem, rows: Rows) -> MIFGSMState:
        return MIFGSMState(
            x=rows.x,
            momentum=torch.zeros_like(rows.x),
            step=torch.zeros_like(rows.y),
            target=self.target(rows) if self.targets else rows.y,
        )

    def ask(self, problem: Problem, rows: Rows, state: MIFGSMState) -> Ask:
        x = state.x
        if self.diversity:
            # The last point is evaluated unchanged.
            shown = self._resizing(problem, rows, state).forward(x)
            x = where(state.step < self.steps, shown, x)
        return Ask(x, objective(self.loss, state.target if self.targets else None))

    def tell(self, problem: Problem, rows: Rows, state: MIFGSMState, answer: Answer) -> MIFGSMState:
        grad = answer.grad
        if self.diversity:
            grad = self._resizing(problem, rows, state).back(grad)
        if self.translation:
            grad = smoothed(grad, self.translation)
        size = grad.flatten(1).abs().sum(1).clamp_min(1e-12)
        momentum = self.momentum * state.momentum + grad / spread(size, grad)
        step = self.step_size or problem.threat.eps / self.steps
        x = into_ball(state.x + step * normalize(momentum, problem.threat.norm), rows, problem.threat)
        over = state.step >= self.steps
        return MIFGSMState(where(over, state.x, x), momentum, state.step + 1, state.target)

    def _resizing(self, problem: Problem, rows: Rows, state: MIFGSMState) -> Resizing:
        return Resizing.drawn(problem.stream, rows, state.step, self.diversity)

    def finished(self, state: MIFGSMState) -> Tensor:
        return state.step > self.steps

    def best(self, state: MIFGSMState) -> Tensor:
        return state.x

"""Black-box adversarial attacks with limited queries and information (Ilyas et al. 2018, arXiv 1804.08598).

The query-limited setting (section 2.2 and Alg. 1): gradients estimated by natural evolution strategies with antithetic
Gaussian samples, and projected steps with momentum.
"""

from dataclasses import dataclass

from torch import Tensor

from robench.attacks._base import Problem, Rows
from robench.attacks._gradient_estimation import Estimated, EstimatedState
from robench.attacks._losses import into_ball, normalize
from robench.core.registry import attacks

_MOMENTUM = 0.9


@attacks.register("nes")
@dataclass(frozen=True)
class NES(Estimated):
    """NES in Linf and L2; uses logits only.

    Args:
        loss: "ce", "dlr" or "margin".
        steps: iterations, with 2 * samples + 1 forward passes each and one more at the end.
        samples: number of pairs of points in each step; 25 pairs are the paper's 50 samples.
        delta: standard deviation of the samples, the paper's sigma; points are clipped to [0, 1].
        step_size: step size, in [0, 1] pixel values; 0.01 is the largest in the paper.
    """

    loss: str = "ce"
    steps: int = 100
    samples: int = 25
    delta: float = 0.001
    step_size: float = 0.01

    def draw(self, problem: Problem, rows: Rows, index: Tensor) -> Tensor:
        return problem.stream.normal(rows.sample, rows.rank, index, tuple(rows.x.shape[1:]))

    def move(
        self, problem: Problem, rows: Rows, state: EstimatedState, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        first = _MOMENTUM * state.first + (1 - _MOMENTUM) * grad
        x = state.x + self.step_size * normalize(first, problem.threat.norm)
        return into_ball(x, rows, problem.threat), first, state.second

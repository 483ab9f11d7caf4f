"""Adversarial risk and the dangers of evaluating against weak attacks (Uesato et al. 2018, arXiv 1802.05666).

SPSA (section 4 and Alg. 1): the gradient is estimated along random sign vectors and followed by Adam.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from robench.attacks._base import Problem, Rows, spread
from robench.attacks._gradient_estimation import Estimated, EstimatedState
from robench.attacks._losses import into_ball
from robench.core.registry import attacks

# Parameters of Adam, as in its paper.
_FIRST, _SECOND, _TINY = 0.9, 0.999, 1e-8


@attacks.register("spsa")
@dataclass(frozen=True)
class SPSA(Estimated):
    """SPSA in Linf and L2; uses logits only.

    Args:
        loss: "ce", "dlr" or "margin".
        steps: iterations of Adam, with 2 * samples + 1 forward passes each and one more at the end. The paper takes 100
            steps of up to 8,192 pairs.
        samples: number of pairs of points in each step.
        delta: size of the perturbation of each pixel; points are clipped to [0, 1].
        step_size: step size of Adam, in [0, 1] pixel values.
    """

    def draw(self, problem: Problem, rows: Rows, index: Tensor) -> Tensor:
        shape = rows.x.shape[1:]
        size = math.prod(shape)
        words = problem.stream.bits(rows.sample, rows.rank, index, -(-size // 32))
        bits = words[:, :, None] >> words.new_tensor(range(32)) & 1
        return (2 * bits.flatten(1)[:, :size] - 1).to(rows.x.dtype).view(-1, *shape)

    def move(
        self, problem: Problem, rows: Rows, state: EstimatedState, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        first = _FIRST * state.first + (1 - _FIRST) * grad
        second = _SECOND * state.second + (1 - _SECOND) * grad.square()
        count = state.step + 1
        mean, square = first / spread(1 - _FIRST**count, grad), second / spread(1 - _SECOND**count, grad)
        x = state.x + self.step_size * mean / (square.sqrt() + _TINY)
        return into_ball(x, rows, problem.threat), first, second

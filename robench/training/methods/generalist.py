"""Generalist: decoupling natural and robust generalization (Wang & Wang, CVPR 2023, arXiv 2303.13813)."""

import copy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.core.fields import AT_LEAST_ONE, AT_MOST_ONE
from robench.training.adversarial import pgd
from robench.training.methods._base import Budget, Method, logits, methods, tensors
from robench.training.schedule import parameter_groups


class Experts(nn.Module):
    """The two base learners, which start from the same weights."""

    def __init__(self, robust: nn.Module):
        super().__init__()
        self.robust = robust
        self.natural = copy.deepcopy(robust)


@methods.register("generalist")
@dataclass(frozen=True)
class Generalist(Method):
    """Two base learners, trained on adversarial and on clean images, and a global learner that averages them.

    The global learner is the moving average of g * robust + (1 - g) * natural; its decay is the recipe's `average`,
    the paper's alpha' (0.999). From `start` on, the weights of the global learner are copied to both base learners
    every few epochs; the state of their optimizer is kept (Alg. 1). The defaults are those of the code published
    under the paper's name, as fractions of its 120 epochs. In that code the base learners are themselves moving
    averages; here they are not. One AdamW trains both learners, since it treats each weight separately. The reported
    loss is the sum of both losses.

    Args:
        share: g at the end of the training; at the start g is 1.
        share_from: fraction of the training after which g decreases linearly to `share`.
        start: fraction of the training after which the global learner is copied to the base learners.
        every: number of epochs between two copies.
        natural_lr: learning rate of the natural learner relative to the robust one. Our choice is 1, for AdamW;
            that code uses 10, for SGD.
    """

    share: Annotated[float, AT_MOST_ONE] = 0.4
    share_from: Annotated[float, AT_MOST_ONE] = 2 / 3
    start: Annotated[float, AT_MOST_ONE] = 0.625
    every: Annotated[int, AT_LEAST_ONE] = 5
    natural_lr: float = 1.0
    needs_average: ClassVar[bool] = True

    def robust_share(self, part: float) -> float:
        """The weight g of the robust learner at the finished fraction `part` of the training."""
        if part <= self.share_from:
            return 1.0
        return 1 + (self.share - 1) * (part - self.share_from) / (1 - self.share_from)

    def learners(self, model: nn.Module) -> nn.Module:
        return Experts(model)

    def loss(self, learners: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
        assert isinstance(learners, Experts)
        x_adv = pgd(learners.robust, x, y, budget.eps, budget.step_size, budget.steps)
        smoothing = budget.label_smoothing
        robust = F.cross_entropy(logits(learners.robust, x_adv), y, label_smoothing=smoothing)
        return robust + F.cross_entropy(logits(learners.natural, x), y, label_smoothing=smoothing)

    def groups(self, learners: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        assert isinstance(learners, Experts)
        robust = parameter_groups(learners.robust, weight_decay, layer_decay)
        natural = parameter_groups(learners.natural, weight_decay, layer_decay)
        return robust + [{**group, "lr_scale": group["lr_scale"] * self.natural_lr} for group in natural]

    def followed(self, learners: nn.Module, part: float) -> list[Tensor]:
        assert isinstance(learners, Experts)
        share = self.robust_share(part)
        pairs = zip(tensors(learners.natural), tensors(learners.robust), strict=True)
        return [a.lerp(b, share) if a.is_floating_point() else b for a, b in pairs]

    @torch.no_grad()
    def after(self, learners: nn.Module, average: nn.Module, done: int, steps: int, total: int) -> None:
        assert isinstance(learners, Experts)
        if done % (self.every * steps) or done <= self.start * total:
            return
        for learner in (learners.robust, learners.natural):
            for tensor, mean in zip(tensors(learner), tensors(average), strict=True):
                tensor.copy_(mean)

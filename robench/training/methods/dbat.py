"""Splitting the difference on adversarial training (Levi & Kontorovich 2023, arXiv 2310.02480): DBAT."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.defenses.dbat import PairedClasses
from robench.training.adversarial import ascend, attacked, normal_start
from robench.training.methods._base import Budget, Method, logits, methods


def draw_targets(y: Tensor, num_classes: int, paired: bool) -> Tensor:
    """Draw a wrong class for every label, (N,), uniformly from the K clean classes, or from all 2K if `paired`.

    With `paired`, neither y nor its adversarial counterpart y + K is drawn.
    """
    wrong = torch.randint(num_classes - 1, y.shape, device=y.device)
    wrong = wrong + (wrong >= y)
    adversarial = torch.randint(2, y.shape, device=y.device) if paired else 0
    return wrong + num_classes * adversarial


@methods.register("dbat")
@dataclass(frozen=True)
class DBAT(Method):
    """One cross entropy over 2K classes: class y for a clean image and class y + K for its adversarial example.

    The network must come from the builder `dbat`. As in the authors' code, the inner attack is PGD towards a random
    class, from a normal start with standard deviation 0.001: first one of the K clean classes, later any of the 2K
    classes except y and y + K. That code uses label smoothing of 0.5, which the recipe must set.

    Args:
        clean_targets: fraction of the training with clean targets only; the code has 20 of 200 epochs.
    """

    clean_targets: float = 0.1

    def learners(self, model: nn.Module) -> nn.Module:
        if not isinstance(model, PairedClasses):
            raise ValueError(
                f"dbat needs a network with twice the classes, but this is a {type(model).__name__}: "
                "write the builder as dbat(base='...')"
            )
        return model

    def loss(self, learners: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
        assert isinstance(learners, PairedClasses)
        network, classes = learners.network, learners.num_classes
        targets = draw_targets(y, classes, paired=budget.part >= self.clean_targets)

        def objective(x_adv: Tensor) -> Tensor:
            return -F.cross_entropy(logits(network, x_adv), targets, reduction="sum")

        with attacked(learners):
            x_adv = ascend(x, normal_start(x), objective, budget.eps, budget.step_size, budget.steps)
        output = logits(network, torch.cat([x, x_adv]))
        return F.cross_entropy(output, torch.cat([y, y + classes]), label_smoothing=budget.label_smoothing)

"""Splitting the difference on adversarial training (Levi & Kontorovich 2023, arXiv 2310.02480): DBAT."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.defenses.dbat import PairedClasses
from robench.training.adversarial import ascend, attacked, normal_start
from robench.training.methods._base import Budget, Method, logits, methods


def draw_targets(y: Tensor, num_classes: int, paired: bool) -> Tensor:
    """A random wrong class for every label, (N,): of the K clean ones, or if `paired` of all 2K.

    With `paired` neither the label nor its adversarial twin is drawn; all others are equally likely.
    """
    other = torch.randint(num_classes - 1, y.shape, device=y.device)
    other = other + (other >= y)
    twin = torch.randint(2, y.shape, device=y.device) if paired else 0
    return other + num_classes * twin


@methods.register("dbat")
@dataclass(frozen=True)
class DBAT(Method):
    """Clean images learn class y, adversarial ones a class of their own, y + K: one cross entropy of 2K classes.

    The network comes from the builder `dbat`. The inner maximiser is PGD aimed at a random class, from a
    normal start of deviation 0.001, as the authors' code: at first one of the K clean classes, later any of
    the 2K but the image's own two. That code smooths labels by 0.5, so a recipe does well to say so.

    Args:
        clean_targets: the part of the training with clean targets alone; the code's 20 epochs of 200.
    """

    clean_targets: float = 0.1

    def learners(self, model: nn.Module) -> nn.Module:
        if not isinstance(model, PairedClasses):
            raise ValueError(
                "dbat needs a network of twice the classes: write the builder as dbat(base='...'), "
                f"it gives a {type(model).__name__}"
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
        wanted = torch.cat([y, y + classes])
        return F.cross_entropy(output, wanted, label_smoothing=budget.label_smoothing)

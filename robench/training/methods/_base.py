"""What a method of adversarial training is: a loss, and where it needs more, who learns and what is kept."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robench.core.fields import check_settings
from robench.core.registry import Registry
from robench.training.schedule import parameter_groups

# A package adds its own by the entry-point group `robench.methods`.
methods = Registry("method")


@dataclass(frozen=True)
class Budget:
    """What a recipe grants every method at one step.

    Attributes:
        eps, step_size: of the inner maximiser in Linf, in [0, 1] pixels; a ramp has been applied.
        steps: of the inner maximiser.
        label_smoothing: of every cross entropy in the loss.
        part: how much of the training is over, in [0, 1).
    """

    eps: float
    step_size: float
    steps: int
    label_smoothing: float = 0.0
    part: float = 0.0


@dataclass(frozen=True)
class Method:
    """Base of every method: a frozen dataclass whose fields are its own settings, the spec's keywords.

    A subclass gives `loss`; the rest has defaults that suit one network with one loss.

    Attributes:
        fewest_steps, most_steps: of the inner maximiser, that the method is defined for.
        needs_average: whether the classifier it makes is the running average.
    """

    fewest_steps: ClassVar[int] = 1
    most_steps: ClassVar[float] = math.inf
    needs_average: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)

    def learners(self, model: nn.Module) -> nn.Module:
        """What is trained, around or in place of the classifier; `model` itself for most.

        Raises:
            ValueError: when the network does not suit the method.
        """
        return model

    def loss(self, learners: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
        """The loss of a batch, a mean over its rows, shape ().

        Args:
            learners: from `learners`, in training mode.
            x: (N, 3, H, W) in [0, 1]; y: (N,).
        """
        raise NotImplementedError

    def groups(self, learners: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """AdamW's groups of parameters; see `parameter_groups`."""
        return parameter_groups(learners, weight_decay, layer_decay)

    def followed(self, learners: nn.Module, part: float) -> list[Tensor]:
        """The weights and buffers that the running average follows when `part` of the training is over."""
        return tensors(learners)

    def after(self, learners: nn.Module, average: nn.Module, done: int, steps: int, total: int) -> None:
        """What happens after a step, the average updated: nothing for most.

        Args:
            done: steps behind it, of `total`; `steps` an epoch.
        """


def tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, in a fixed order."""
    return [*model.parameters(), *model.buffers()]


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """The model's logits, in float32 at least: a loss of half-precision numbers would lose too much."""
    output = model(x)
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax(p) || softmax(q)) of logits (N, K), one number a row, at least 0 but for rounding."""
    log_p, log_q = p.log_softmax(1), q.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)

"""Base class of adversarial training methods and functions that several methods use."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robench.core.fields import check_settings
from robench.core.registry import Registry
from robench.training.schedule import parameter_groups

# Packages add methods through the entry-point group `robench.methods`.
methods = Registry("method")


@dataclass(frozen=True)
class Budget:
    """Settings of the recipe for one step, which apply to every method.

    Attributes:
        eps, step_size: radius and step size of the inner attack in Linf, for pixels in [0, 1], after the ramp.
        steps: number of steps of the inner attack.
        label_smoothing: of every cross entropy in the loss.
        part: finished fraction of the training, in [0, 1).
    """

    eps: float
    step_size: float
    steps: int
    label_smoothing: float = 0.0
    part: float = 0.0


@dataclass(frozen=True)
class Method:
    """Base class of all methods: a frozen dataclass whose fields are the arguments of the method's spec.

    Subclasses implement `loss`. The other methods have defaults for a single network with a single loss.

    Attributes:
        fewest_steps, most_steps: supported number of steps of the inner attack.
        needs_average: whether the trained classifier is the moving average.
        mixes_labels: whether labels may be probabilities, (N, K), as after mixup.
    """

    fewest_steps: ClassVar[int] = 1
    most_steps: ClassVar[float] = math.inf
    needs_average: ClassVar[bool] = False
    mixes_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def sets_weights(self) -> bool:
        """Whether `learners` replaces the initial weights, so that a pre-training would be in vain."""
        return False

    def learners(self, model: nn.Module) -> nn.Module:
        """Return the module to train, which may wrap or replace the classifier; by default `model` itself.

        Raises:
            ValueError: if the method does not support the network.
        """
        return model

    def loss(self, learners: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> Tensor:
        """The mean loss over the rows of a batch, shape ().

        Args:
            learners: from `learners`, in training mode.
            x: (N, 3, H, W) in [0, 1]; y: (N,).
        """
        raise NotImplementedError

    def groups(self, learners: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for AdamW; see `parameter_groups`."""
        return parameter_groups(learners, weight_decay, layer_decay)

    def followed(self, learners: nn.Module, part: float) -> list[Tensor]:
        """The weights and buffers that the moving average follows.

        Args:
            part: finished fraction of the training.
        """
        return tensors(learners)

    def after(self, learners: nn.Module, average: nn.Module, done: int, steps: int, total: int) -> None:
        """Called after each step, when the average is updated; does nothing by default.

        Args:
            done: number of finished steps.
            steps: number of steps per epoch.
            total: number of steps of the training.
        """


def tensors(model: nn.Module) -> list[Tensor]:
    """The parameters and buffers of a module, in a fixed order."""
    return [*model.parameters(), *model.buffers()]


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """The model's logits, converted to float32 if in half precision, which is not accurate enough for a loss."""
    output = model(x)
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax(p) || softmax(q)) for logits (N, K), per row; non-negative except for rounding."""
    log_p, log_q = p.log_softmax(1), q.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)

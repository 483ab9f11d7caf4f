"""An attack that calls the model by itself: another library's, taken in whole."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robench.attacks._base import Attack
from robench.threats.threat import Threat


@dataclass(frozen=True)
class ForeignAttack(Attack[Any]):
    """Base of attacks that are not played row by row; a subclass gives `perturb`.

    The engine calls it once on all survivors, counts its passes, and lets the judge decide over what it
    returns as over anything else. It can be resumed only as a whole, and nothing of it is dropped early.
    """

    in_pixels: ClassVar[bool] = True

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int, batch_size: int
    ) -> Tensor:
        """The attacked images, (N, C, H, W), for clean ones that the model classifies rightly."""
        raise NotImplementedError


class Counted(nn.Module):
    """A model that counts the images it is called on, forward and backward."""

    def __init__(self, model: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model = model
        self.forward_passes = 0
        self.backward_passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forward_passes += len(x)
        logits = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    @torch.no_grad()
    def _count(self, grad: Tensor) -> None:
        self.backward_passes += len(grad)

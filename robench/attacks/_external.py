"""Attacks of other libraries, which call the model themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robench.attacks._base import Attack
from robench.threats.threat import Threat


@dataclass(frozen=True)
class ForeignAttack(Attack[Any]):
    """Base of attacks that are not run row by row; a subclass implements `perturb`.

    The engine calls it once on all survivors, counts its passes and judges the returned images as usual. An interrupted
    attack starts over, and no image is dropped before the attack ends.
    """

    in_pixels: ClassVar[bool] = True

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int, batch_size: int
    ) -> Tensor:
        """Attack clean images (N, C, H, W) that the model classifies correctly; returns images of the same shape."""
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

"""Adversarial examples from any other tool, as the attack that found them."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.attacks._external import ForeignAttack
from robench.core.errors import UsageError
from robench.core.registry import attacks
from robench.threats.threat import Threat

_images: ContextVar[Mapping[str, Tensor] | None] = ContextVar("images", default=None)


@contextmanager
def submitted_images(x: Tensor, x_adv: Tensor) -> Iterator[None]:
    """Inside the block, the attack `submitted` gives the images `x_adv` for the clean images `x`, (N, C, H, W)."""
    token = _images.set({_digest(clean): image for clean, image in zip(x, x_adv, strict=True)})
    try:
        yield
    finally:
        _images.reset(token)


@attacks.register("submitted")
@dataclass(frozen=True)
class Submitted(ForeignAttack):
    """Adversarial examples that were submitted with `robench challenge`; cannot be run.

    Args:
        finder: who found them.
        sha256: digest of the submitted images.
    """

    finder: str
    sha256: str

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int, batch_size: int
    ) -> Tensor:
        """The submitted images, at the cost of one pass each; the clean image where none was submitted.

        Raises:
            UsageError: outside `submitted_images`.
        """
        images = _images.get()
        if images is None:
            raise UsageError(
                f"the adversarial examples of {self.finder} cannot be computed: robench challenge judges a file of them"
            )
        x_adv = torch.stack([images.get(_digest(clean), clean).to(clean) for clean in x])
        with torch.no_grad():
            for part in x_adv.split(batch_size):
                model(part)
        return x_adv


def _digest(image: Tensor) -> str:
    return hashlib.sha256(image.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()

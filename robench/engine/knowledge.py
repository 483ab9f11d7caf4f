"""What the attacker knows, as the choice of a surrogate: full, bpda, oblivious or transfer:NAME."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robench.defenses._base import Defense
from robench.engine.suite import Attacker
from robench.errors import UsageError, unknown_name

LEVELS = ("full", "bpda", "oblivious", "transfer:NAME")


class _Straight(torch.autograd.Function):
    """The value of one tensor with the gradient of another: identity backward."""

    @staticmethod
    def forward(ctx, x: Tensor, purified: Tensor) -> Tensor:
        return purified

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class IdentityBackward(nn.Module):
    """A purifier whose backward pass is the identity.

    Obfuscated gradients give a false sense of security (Athalye et al. 2018, arXiv 1802.00420, section 4.1).
    """

    def __init__(self, purifier: nn.Module):
        super().__init__()
        self.purifier = purifier

    def forward(self, x: Tensor) -> Tensor:
        """Images to images, both (N, 3, H, W) in [0, 1]."""
        with torch.no_grad():
            purified = self.purifier(x)
        return _Straight.apply(x, purified)


def attacker(knowledge: str, defense: Defense, load: Callable[[str], nn.Module]) -> Attacker:
    """The attacker of that knowledge level.

    Args:
        load: gives the defense called NAME, for `transfer:NAME`.

    Raises:
        UsageError: for an unknown level, or one that needs a purifier where there is none.
    """
    level, _, name = knowledge.partition(":")
    if level == "full" and not name:
        return Attacker()
    if level == "transfer":
        if not name:
            raise UsageError("knowledge transfer needs a defense to transfer from: write transfer:NAME")
        return Attacker(load(name), blind=True)
    if level not in ("bpda", "oblivious") or name:
        raise unknown_name("knowledge level", knowledge, LEVELS)
    purifier = getattr(defense, "purifier", None)
    if purifier is None:
        raise UsageError(f"knowledge {level} needs a purifier, and this defense has none: use full")
    if level == "oblivious":
        return Attacker(_without(defense, None), blind=True)
    return Attacker(_without(defense, IdentityBackward(purifier)))


def _without(defense: Defense, purifier: nn.Module | None) -> Defense:
    """The same classifier behind another purifier, or none."""
    mean, std = defense.mean, defense.std
    same = Defense(
        defense.classifier,
        num_classes=defense.num_classes,
        image_size=defense.image_size,
        purifier=purifier,
        mean=None if mean is None else tuple(mean.flatten().tolist()),
        std=None if std is None else tuple(std.flatten().tolist()),
        stochastic=defense.stochastic if purifier is not None else False,
    )
    return same.to(next(defense.parameters()).device)

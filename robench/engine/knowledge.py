"""What the attacker knows, as the choice of a surrogate: full, bpda, oblivious, transfer:NAME or surrogate:NAME."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.canonical import check_knowledge
from robench.core.errors import UsageError
from robench.core.trust import like
from robench.defenses._base import Defense, Purifier, with_purifier
from robench.engine.batched_model import Model

# Where the attacker may ask the judge at every step; elsewhere once a row, at the end.
_ASKING = {"full", "bpda", "surrogate"}


@dataclass(frozen=True)
class Attacker:
    """What the attacker knows: the surrogate it searches on, and whether it may ask the judge.

    Attributes:
        surrogate: images to logits; None is the defense itself.
        no_verdict_feedback: the judge is asked only at the end of each row.
    """

    surrogate: Model | None = None
    no_verdict_feedback: bool = False


class _Straight(torch.autograd.Function):
    """The value of one tensor with the gradient of another: identity backward."""

    @staticmethod
    def forward(ctx, x: Tensor, purified: Tensor) -> Tensor:
        return purified

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class IdentityBackward(Purifier):
    """A purifier whose backward pass is the identity.

    Obfuscated gradients give a false sense of security (Athalye et al. 2018, arXiv 1802.00420, section 4.1).
    """

    def __init__(self, purifier: nn.Module):
        super().__init__()
        self.purifier = purifier
        self.stochastic = bool(getattr(purifier, "stochastic", False))

    def forward(self, x: Tensor) -> Tensor:
        """Images to images, both (N, 3, H, W) in [0, 1]."""
        with torch.no_grad():
            purified = self.purifier(x)
        return _Straight.apply(x, purified)


def asks_judge(knowledge: str) -> bool:
    """Whether an attacker of that knowledge level learns of each verdict."""
    return knowledge.partition(":")[0] in _ASKING


def attacker(knowledge: str, defense: Defense, load: Callable[[str], nn.Module]) -> Attacker:
    """The attacker of that knowledge level.

    `transfer:NAME` searches on another defense and learns of no verdict. `surrogate:NAME` does learn: white box, by
    a stand-in whose gradient costs less, such as a diffusion purifier with fewer reverse steps.

    Args:
        load: gives the defense called NAME.

    Raises:
        UsageError: for an unknown level, or one that needs a purifier where there is none.
    """
    check_knowledge(knowledge)
    level, _, name = like(knowledge, knowledge.partition(":"))
    no_verdict_feedback = not asks_judge(knowledge)
    if level == "full":
        return Attacker()
    if level in ("transfer", "surrogate"):
        return Attacker(load(name), no_verdict_feedback)
    purifier = getattr(defense, "purifier", None)
    if purifier is None:
        raise UsageError(f"knowledge {level} needs a purifier, and this defense has none: use full")
    if level == "oblivious":
        return Attacker(with_purifier(None, defense), no_verdict_feedback)
    return Attacker(with_purifier(IdentityBackward(purifier), defense), no_verdict_feedback)

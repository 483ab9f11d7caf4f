"""Attacker knowledge as the choice of a surrogate and of its noise: see `robench.threats.knowledge`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.core.errors import UsageError
from robench.defenses._base import Defense, Purifier, with_purifier
from robench.engine.batched_model import Model
from robench.threats.knowledge import Knowledge, check_knowledge


@dataclass(frozen=True)
class Attacker:
    """The attacker's surrogate, and whether it receives verdicts.

    Attributes:
        surrogate: the model that is searched; None for the defense itself.
        no_verdict_feedback: whether the judge is queried only at the end of each row.
        knows_noise: whether the search uses the noise draws of the verdict.
    """

    surrogate: Model | None = None
    no_verdict_feedback: bool = False
    knows_noise: bool = False


class _StraightThrough(torch.autograd.Function):
    """Returns `purified`; the backward pass is the identity with respect to `x`."""

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
        """Purify images (N, C, H, W) in [0, 1]."""
        with torch.no_grad():
            purified = self.purifier(x)
        return _StraightThrough.apply(x, purified)


def asks_judge(knowledge: str) -> bool:
    """Whether an attacker with this knowledge receives a verdict at every step."""
    return Knowledge.of(knowledge).level.feedback


def attacker(knowledge: str, defense: Defense, load: Callable[[str], nn.Module]) -> Attacker:
    """The attacker with this knowledge.

    `transfer:NAME` searches on another defense and receives no verdicts. `surrogate:NAME` receives verdicts: it is a
    white-box attack on a model with cheaper gradients, such as a diffusion purifier with fewer reverse steps.

    Args:
        load: loads the defense NAME.

    Raises:
        UsageError: if the level is unknown, or the defense has no purifier or no noise and the level needs it.
    """
    known = check_knowledge(knowledge)
    no_verdict_feedback = not known.level.feedback
    if known.level.needs_name:
        return Attacker(load(known.defense), no_verdict_feedback)
    if known.level.knows_noise and not defense.stochastic:
        raise UsageError(
            f"knowledge {known.name} needs a randomized defense, and this one draws no noise: use full"
        )
    if not known.level.needs_purifier:
        return Attacker(knows_noise=known.level.knows_noise)
    purifier = getattr(defense, "purifier", None)
    if purifier is None:
        raise UsageError(f"knowledge {known.name} needs a purifier, but this defense has none: use full")
    if known.name == "oblivious":
        return Attacker(with_purifier(None, defense), no_verdict_feedback)
    return Attacker(with_purifier(IdentityBackward(purifier), defense), no_verdict_feedback)

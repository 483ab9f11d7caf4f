"""What a way to train a purifier is: who learns, from which images, by which loss."""

from dataclasses import dataclass

from torch import Tensor, nn

from robench.core.fields import check_settings
from robench.core.registry import Registry
from robench.defenses._base import Purifier

# A package adds its own by the entry-point group `robench.purifyings`.
purifier_trainings = Registry("purifying")


@dataclass(frozen=True)
class PurifierTraining:
    """Base of every way to train a purifier: a frozen dataclass whose fields are the spec's keywords.

    A subclass gives `loss`; the rest has defaults that suit a purifier trained on clean images alone. Numbers are
    checked to be finite and at least 0; a subclass that knows better extends `__post_init__`.
    """

    def __post_init__(self) -> None:
        check_settings(self)

    def check(self) -> None:
        """Look whether everything is at hand; called before the first stage of a recipe begins.

        Raises:
            ResourceError: when a package or a file that it needs is missing.
        """

    def learner(self, purifier: Purifier) -> nn.Module:
        """What is trained, around or in place of the purifier; parameters without gradient stay as they are.

        Raises:
            ValueError: when the purifier is of another kind.
        """
        return purifier

    def images(self, learner: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """What the epochs go over, (N, C, H, W): `x` itself, or with more channels, such as adversarial images
        beside the clean ones; crops and mirror images are drawn once for all channels of an image.

        Called once, before the first epoch, with torch's generator seeded.
        """
        return x

    def loss(self, learner: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch, a mean over its rows, shape ().

        Args:
            learner: from `learner`, in training mode.
            x: rows of `images`, augmented; y: (N,).
        """
        raise NotImplementedError

    def finish(self, learner: nn.Module, purifier: Purifier) -> None:
        """Put what was learnt into the purifier, when `learner` is another module."""

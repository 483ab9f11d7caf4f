"""Base class of the training methods of purifiers."""

from dataclasses import dataclass

from torch import Tensor, nn

from robench.core.fields import check_settings
from robench.core.registry import Registry
from robench.data._lazy_images import LazyImages
from robench.defenses._base import Purifier

# Packages add methods through the entry-point group `robench.purifyings`.
purifier_trainings = Registry("purifying")


@dataclass(frozen=True)
class PurifierTraining:
    """Base class of all methods: a frozen dataclass whose fields are the arguments of the method's spec.

    Subclasses implement `loss`. The other methods have defaults for a purifier trained on clean images. Numbers must
    be finite and non-negative; subclasses add further checks in `__post_init__`.
    """

    def __post_init__(self) -> None:
        check_settings(self)

    def check(self) -> None:
        """Check that required packages and files are available; called before the first stage of a recipe.

        Raises:
            ResourceError: if a package or file is missing.
        """

    def learner(self, purifier: Purifier) -> nn.Module:
        """Return the module to train, which may wrap or replace the purifier; by default the purifier itself.

        Parameters that require no gradient stay fixed.

        Raises:
            ValueError: if the method does not support the purifier.
        """
        return purifier

    def images(self, learner: nn.Module, x: Tensor | LazyImages, y: Tensor) -> Tensor | LazyImages:
        """Return the training images, (N, C, H, W); by default `x`, which is lazy if the set is large.

        Additional channels may hold further images, such as adversarial examples of the clean images: augmentation
        transforms all channels of an image alike. Called once before the first epoch, after torch's generator is
        seeded.
        """
        return x

    def loss(self, learner: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss over the rows of a batch, shape ().

        Args:
            learner: from `learner`, in training mode.
            x: rows of `images`, augmented; y: (N,).
        """
        raise NotImplementedError

    def finish(self, learner: nn.Module, purifier: Purifier) -> None:
        """Copy the trained weights into the purifier, if `learner` is another module."""

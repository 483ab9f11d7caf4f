"""Base classes of defenses and purifiers.

A defense is an `nn.Module` that maps images in [0, 1] to logits, with the attributes that an evaluation needs. Its
optional first stage is a purifier, which maps images to images and works in front of any classifier.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robench._moved import old_arguments, old_names
from robench.core.errors import UsageError
from robench.defenses._feature_hooks import capture_features
from robench.defenses._normalisation import own_normalisations

_LOOSE = 1e-3  # tolerance for rounding in purifiers that normalize and scale back


class Purifier(nn.Module):
    """Base class of purifiers, which map images (N, 3, H, W) in [0, 1] to images of the same shape and range.

    Subclasses implement `forward`. They draw noise with `robench.core.rng.normal_like` and `uniform_like`, so that
    the noise of an image depends on the seed and not on its batch.

    Attributes:
        stochastic: whether two calls on the same images may differ.
        differentiable: whether autograd gives the exact gradient.
        image_size: side of the square images in pixels; None for any size.
    """

    stochastic: bool = False
    differentiable: bool = True
    image_size: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def fitted(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Rename the tensors of a checkpoint that was published with other names to the names of this purifier."""
        return state

    def input_noise(self) -> float:
        """Standard deviation of the Gaussian noise that is added to the image first, for images in [0, 1].

        The output may depend on the image only through `x + input_noise * normal`. Randomized smoothing then certifies
        the majority vote of the defense (`robench certify`).

        Raises:
            ValueError: if there is no such noise; the message gives the reason.
        """
        raise ValueError("it does not add Gaussian noise to the image before anything else sees it")

    def check(self, side: int) -> None:
        """Check that images of this side, in pixels, can be purified.

        Raises:
            ValueError: if not; the message says which sizes are accepted, and how to accept others.
        """
        if self.image_size not in (None, side):
            raise ValueError(f"this purifier takes images of {self.image_size} px, not of {side} px")

    def try_out(self, side: int, channels: int = 3) -> None:
        """Check on a black and a white image that the output has the same shape and lies in [0, 1].

        Raises:
            ValueError: if not; the message describes the output.
        """
        x = torch.stack([torch.zeros(channels, side, side), torch.ones(channels, side, side)])
        try:
            with torch.no_grad():
                output = self(x)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"it does not take images of shape {tuple(x.shape)} ({reason})") from error
        if output.shape != x.shape:
            raise ValueError(f"it gives {tuple(output.shape)} for images of shape {tuple(x.shape)}")
        low, high = float(output.min()), float(output.max())
        if not (low > -_LOOSE and high < 1 + _LOOSE):
            raise ValueError(
                f"it gives pixels from {low:.3g} to {high:.3g}, where [0, 1] is expected: if it was trained for "
                "another range, let it rescale its input and output"
            )


@old_arguments(among="class_subset")
class Defense(nn.Module):
    """A classifier with an optional purifier in front of it; you need not subclass it.

    Args:
        classifier: maps images to logits; a method `forward_features` makes `features` available.
        num_classes: number of classes K.
        image_size: side of the square images in pixels.
        channels: number of channels C of the images: 3, or 1 for grayscale images.
        purifier: maps images in [0, 1] to images in [0, 1]; None for no purifier.
        mean: mean for the normalization before the classifier, one number or one per channel; None for none.
        std: standard deviation for the normalization, one number or one per channel; None if and only if `mean` is.
        stochastic: whether two calls on the same images may differ.
        differentiable: whether autograd gives the exact gradient.
        class_subset: indices of the logits that are used, in the order of the K classes; empty for all.
        preprocessing: the preprocessing that the classifier was published with, a name of
            `robench.data.preprocessing`; empty if unknown or none.

    Raises:
        ValueError: if only one of `mean` and `std` is given, either has a wrong number of values, `std` is not
            positive, or the classifier seems to normalize its input itself, because it has per-channel constants called
            mean (or mu) and std (or sigma).

    Attributes:
        name: name of the card or the spec from which it was loaded; otherwise empty.
    """

    name: str = ""

    def __init__(
        self,
        classifier: nn.Module,
        *,
        num_classes: int,
        image_size: int,
        purifier: nn.Module | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        stochastic: bool = False,
        differentiable: bool = True,
        class_subset: tuple[int, ...] = (),
        preprocessing: str = "",
        channels: int = 3,
    ):
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError(f"{mean=} and {std=}: expected both or neither")
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and (
                len(values) not in (1, channels) or (name == "std" and min(values) <= 0)
            ):
                positive = "positive " if name == "std" else ""
                raise ValueError(
                    f"{name}={values}: expected one {positive}number, or {channels}, one per channel"
                )
        if mean is not None and (constants := own_normalisations(classifier)):
            raise ValueError(
                f"{mean=} for a classifier that normalizes by itself, with its {constants[0].names[0]}: leave it out"
            )
        self.classifier = classifier
        self.purifier = purifier
        self.num_classes = num_classes
        self.image_size = image_size
        self.channels = channels
        self.stochastic = stochastic
        self.differentiable = differentiable
        self.class_subset = class_subset
        self.preprocessing = preprocessing
        self.mean: Tensor | None
        self.std: Tensor | None
        self.register_buffer("mean", _channels(mean), persistent=False)
        self.register_buffer("std", _channels(std), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W), float32 in [0, 1]."""
        return self._selected(self.classifier(self._inner(x)))

    predict = forward

    def features(self, x: Tensor) -> Tensor:
        """Features of `x`, the output of the classifier's `forward_features`: (N, tokens, D) for a transformer.

        Raises:
            UsageError: if the classifier has no `forward_features`.
        """
        return self._forward_features()(self._inner(x))

    def all_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Output of each block (or stage) of the classifier for `x`, in order.

        For a classifier without blocks, this is only its `features`.

        Raises:
            UsageError: as `features`.
        """
        return self.logits_and_features(x, "all")[1]

    def logits_and_features(self, x: Tensor, layers: str = "last") -> tuple[Tensor, tuple[Tensor, ...]]:
        """`forward(x)`, and `features(x)` ("last") or `all_features(x)` ("all"), under the same noise of the purifier.

        This takes one pass, or two if the classifier computes its logits without calling its `forward_features`.

        Raises:
            UsageError: as `features`.
        """
        forward_features, inner = self._forward_features(), self._inner(x)
        with capture_features(self.classifier, layers) as features:
            logits = self._selected(self.classifier(inner))
        return logits, tuple(features) or (forward_features(inner),)

    def _forward_features(self) -> Callable[[Tensor], Tensor]:
        forward_features: Any = getattr(self.classifier, "forward_features", None)
        if forward_features is None:
            raise UsageError(
                f"this defense has no features: its classifier, a {type(self.classifier).__name__}, has no "
                "forward_features(x); give it one, or choose attacks on the logits, such as autoattack"
            )
        return forward_features

    def _selected(self, logits: Tensor) -> Tensor:
        return logits[:, list(self.class_subset)] if self.class_subset else logits

    def _inner(self, x: Tensor) -> Tensor:
        if self.purifier is not None:
            x = self.purifier(x)
        return x if self.mean is None or self.std is None else (x - self.mean) / self.std


def with_purifier(purifier: nn.Module | None, defense: Defense) -> Defense:
    """A copy of the defense with another purifier, or none, in place of its current one."""
    # What the current purifier does not explain is the classifier's.
    current = defense.purifier
    random_classifier = defense.stochastic and not getattr(current, "stochastic", current is not None)
    smooth_classifier = defense.differentiable or not getattr(current, "differentiable", True)
    unknown = purifier is not None and defense.stochastic
    return _copy(
        defense,
        purifier=purifier,
        stochastic=random_classifier or bool(getattr(purifier, "stochastic", unknown)),
        differentiable=smooth_classifier and bool(getattr(purifier, "differentiable", True)),
    )


def restricted(defense: Defense, class_subset: tuple[int, ...]) -> Defense:
    """A copy of the defense that returns only the logits of the given classes, in their order."""
    return _copy(defense, num_classes=len(class_subset), class_subset=class_subset)


def _copy(defense: Defense, **changed: Any) -> Defense:
    mean, std = defense.mean, defense.std
    arguments = {
        "num_classes": defense.num_classes,
        "image_size": defense.image_size,
        "purifier": defense.purifier,
        "mean": None if mean is None else tuple(mean.flatten().tolist()),
        "std": None if std is None else tuple(std.flatten().tolist()),
        "stochastic": defense.stochastic,
        "differentiable": defense.differentiable,
        "class_subset": defense.class_subset,
        "preprocessing": defense.preprocessing,
        "channels": defense.channels,
    }
    copy = Defense(defense.classifier, **arguments | changed)
    parameter = next(defense.parameters(), None)
    return copy if parameter is None else copy.to(parameter.device)


def _channels(values: tuple[float, ...] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values).view(1, -1, 1, 1)


__getattr__ = old_names(__name__)

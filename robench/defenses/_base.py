"""What a defense is: an `nn.Module` from images in [0, 1] to logits, with what the suite must know of it.

A purifier is its first stage, where it has one: images to images, in front of any classifier.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robench._moved import old_arguments, old_names
from robench.core.errors import UsageError
from robench.defenses._feature_hooks import capture_features
from robench.defenses._normalisation import own_normalisations

_LOOSE = 1e-3  # for the arithmetic of a purifier that normalises and scales back


class Purifier(nn.Module):
    """Base of every purifier: images (N, 3, H, W) in [0, 1] to images of the same shape and range.

    A subclass gives `forward`. Noise comes from `robench.core.rng.normal_like` and `uniform_like`, so that the
    engine decides it row by row.

    Attributes:
        stochastic: whether two calls on the same images may differ.
        differentiable: whether the exact gradient exists.
        image_size: side of the square images it was built for; None takes every size.
    """

    stochastic: bool = False
    differentiable: bool = True
    image_size: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def fitted(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A checkpoint's tensors under this purifier's names: where others publish theirs in a layout of their own."""
        return state

    def check(self, side: int) -> None:
        """Refuse images of a side that it cannot purify.

        Raises:
            ValueError: saying what it takes, and how it would take others.
        """
        if self.image_size not in (None, side):
            raise ValueError(f"this purifier takes images of {self.image_size} px, not of {side} px")

    def try_out(self, side: int, channels: int = 3) -> None:
        """Refuse what does not give images in [0, 1] for such images, a black and a white one.

        Raises:
            ValueError: saying what it gives.
        """
        x = torch.stack([torch.zeros(channels, side, side), torch.ones(channels, side, side)])
        try:
            with torch.no_grad():
                got = self(x)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"it does not take images of shape {tuple(x.shape)} ({reason})") from error
        if got.shape != x.shape:
            raise ValueError(f"it gives {tuple(got.shape)} for images of shape {tuple(x.shape)}")
        low, high = float(got.min()), float(got.max())
        if not (low > -_LOOSE and high < 1 + _LOOSE):
            raise ValueError(
                f"it gives pixels from {low:.3g} to {high:.3g}, where [0, 1] is expected: if it was trained for "
                "another range, let it scale what it takes and what it gives"
            )


@old_arguments(among="class_subset")
class Defense(nn.Module):
    """A classifier, with a purifier in front of it where the defense has one.

    Variation comes by what is put inside, not by subclassing.

    Args:
        classifier: images to logits; a `forward_features` method makes `features` available.
        num_classes: K.
        image_size: side of the square images, in pixels.
        channels: C of the images: 3, or 1 for grey ones.
        purifier: images to images, both in [0, 1], or None.
        mean: one number per channel, subtracted before the classifier; None for no normalisation.
        std: one number per channel, by which the difference is divided; None with `mean`.
        stochastic: whether two calls on the same images may differ.
        differentiable: whether the exact gradient exists.
        class_subset: which of the classifier's logits count, in the order of the K classes; empty for all.
        preprocessing: what the classifier's makers do to pictures before it, by a name of
            `robench.data.preprocessing`; empty where they do not say, or it has none.

    Raises:
        ValueError: for a mean without a std, or both for a classifier that seems to normalise by itself: it
            has a number for each channel called mean (or mu) and std (or sigma).
    """

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
            raise ValueError(f"{mean=} and {std=}: give both or neither")
        if mean is not None and (own := own_normalisations(classifier)):
            raise ValueError(
                f"{mean=} for a classifier that normalises by itself, with its {own[0].names[0]}: leave it out"
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
        """Logits, (N, K), of images (N, C, H, W), float32 in [0, 1]."""
        return self._counted(self.classifier(self._inner(x)))

    predict = forward

    def features(self, x: Tensor) -> Tensor:
        """What the classifier's last block gives for `x`: (N, tokens, D) for a transformer.

        Raises:
            UsageError: when the classifier has no `forward_features`.
        """
        return self._forward_features()(self._inner(x))

    def all_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """What each of the classifier's blocks (or stages) gives for `x`, the first block's first.

        A classifier without blocks gives its `features` alone.

        Raises:
            UsageError: as `features`.
        """
        return self.logits_and_features(x, "all")[1]

    def logits_and_features(self, x: Tensor, layers: str = "last") -> tuple[Tensor, tuple[Tensor, ...]]:
        """`forward(x)` with `features(x)` ("last") or `all_features(x)` ("all"), of one draw of the purifier's noise.

        One pass, or two where the classifier computes its logits without calling its `forward_features`.

        Raises:
            UsageError: as `features`.
        """
        forward_features, inner = self._forward_features(), self._inner(x)
        with capture_features(self.classifier, layers) as heard:
            logits = self._counted(self.classifier(inner))
        return logits, tuple(heard) or (forward_features(inner),)

    def _forward_features(self) -> Callable[[Tensor], Tensor]:
        forward_features: Any = getattr(self.classifier, "forward_features", None)
        if forward_features is None:
            raise UsageError(
                f"this defense has no features: its classifier, a {type(self.classifier).__name__}, has no "
                "forward_features(x); give it one, or choose attacks on the logits, such as autoattack"
            )
        return forward_features

    def _counted(self, logits: Tensor) -> Tensor:
        return logits[:, list(self.class_subset)] if self.class_subset else logits

    def _inner(self, x: Tensor) -> Tensor:
        if self.purifier is not None:
            x = self.purifier(x)
        return x if self.mean is None or self.std is None else (x - self.mean) / self.std


def with_purifier(purifier: nn.Module | None, defense: Defense) -> Defense:
    """The same classifier behind another purifier, or none; a purifier it already has is replaced."""
    return _like(
        defense,
        purifier=purifier,
        stochastic=bool(getattr(purifier, "stochastic", purifier is not None and defense.stochastic)),
        differentiable=bool(getattr(purifier, "differentiable", True)),
    )


def restricted(defense: Defense, class_subset: tuple[int, ...]) -> Defense:
    """The same defense, of whose logits only those of some classes count, in the order given."""
    return _like(defense, num_classes=len(class_subset), class_subset=class_subset)


def _like(defense: Defense, **changed: Any) -> Defense:
    mean, std = defense.mean, defense.std
    same = {
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
    made = Defense(defense.classifier, **same | changed)
    parameter = next(defense.parameters(), None)
    return made if parameter is None else made.to(parameter.device)


def _channels(values: tuple[float, ...] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values).view(1, -1, 1, 1)


__getattr__ = old_names(__name__)

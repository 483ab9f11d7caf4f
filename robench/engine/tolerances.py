"""When two runs say the same: how far margins may differ by rounding, and how many images are more than chance."""

from torch import Tensor

# Of a margin between logits: other devices and libraries round it by less, other weights move it by more.
MARGIN = 0.01
# More than 0.2 points, which is AutoAttack's threshold for Square, and more than one image that chance could explain.
POINTS, _IMAGES = 0.002, 2


def margins(logits: Tensor) -> Tensor:
    """How far the best of the logits (N, K) lies above the next one, (N,); 0 where there is one class."""
    best = logits.topk(min(2, logits.shape[1]), 1).values
    return best[:, 0] - best[:, -1]


def same_margins(then: Tensor, now: Tensor) -> Tensor:
    """Which margins (N,) are the same up to rounding, bool (N,); NaN is NaN."""
    close = (now - then).abs() <= MARGIN * (1 + then.abs())
    return close | (now.isnan() & then.isnan()) | (now == then)


def beyond_chance(images: int, n: int) -> bool:
    """Whether a number of images out of `n` is more than chance or rounding explains."""
    return images > POINTS * n and images >= _IMAGES

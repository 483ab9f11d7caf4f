"""Faster versions of slow corruptions of the library, with equal random numbers and gray levels equal to within one.

Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
arXiv 1903.12261, defines the corruptions and their five severities. `tests/corruption/test_quick.py` compares each with
`imagecorruptions-imaug`, which the parameters of the severities are taken from. Random numbers are drawn from NumPy's
global generator in the same order as in the library.
"""

import importlib.resources
import math
from collections.abc import Callable
from decimal import Decimal
from functools import cache, lru_cache

import cv2
import numpy as np

from robench.corruption import _loops

# A function of an image (H, W, 3) uint8 and a severity 1 to 5 to an image (H, W, 3) uint8.
Corruption = Callable[[np.ndarray, int], np.ndarray]


def gaussian_noise(x: np.ndarray, severity: int) -> np.ndarray:
    scale = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return _loops.add(x, np.random.normal(size=x.shape, scale=scale), False)  # noqa: NPY002


def speckle_noise(x: np.ndarray, severity: int) -> np.ndarray:
    scale = (0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1]
    return _loops.add(x, np.random.normal(size=x.shape, scale=scale), True)  # noqa: NPY002


def shot_noise(x: np.ndarray, severity: int) -> np.ndarray:
    scale = (60, 25, 12, 5, 3)[severity - 1]
    return _loops.counted(np.random.poisson(x / 255.0 * scale), float(scale))  # noqa: NPY002


def glass_blur(x: np.ndarray, severity: int, seed: int) -> np.ndarray:
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    weights = _gaussian(sigma, 4.0)
    # Truncated without clipping, as in the library: blurring keeps the range.
    softened = (_loops.blur(x / 255.0, weights, weights, False) * 255).astype(np.uint8)
    _loops.shuffle(softened, reach, rounds, seed)
    return _levels(_loops.blur(softened / 255.0, weights, weights, False))


def gaussian_blur(x: np.ndarray, severity: int) -> np.ndarray:
    weights = _gaussian((1, 2, 3, 4, 6)[severity - 1], 4.0)
    return _levels(_loops.blur(x / 255.0, weights, weights, False))


def motion_blur(x: np.ndarray, severity: int) -> np.ndarray:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    streaked = _streak(x, radius, sigma, np.random.uniform(-45, 45))  # noqa: NPY002
    return np.clip(streaked, 0, 255).astype(np.uint8)


def zoom_blur(x: np.ndarray, severity: int) -> np.ndarray:
    last, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    factors = np.arange(1, last, step)
    x = (x / 255.0).astype(np.float32)
    total = np.zeros_like(x)
    for factor in factors:
        _zoom(x, float(factor), total)
    return _loops.mean_of(x, total, len(factors))


def snow(x: np.ndarray, severity: int) -> np.ndarray:
    mean, scale, factor, threshold, radius, sigma, keep = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    height, width = x.shape[:2]
    layer = _zoom(np.random.normal(size=(height, width), loc=mean, scale=scale)[..., None], factor)  # noqa: NPY002
    layer[layer < threshold] = 0
    layer = _streak(np.clip(layer, 0, 1), radius, sigma, np.random.uniform(-135, -45))  # noqa: NPY002
    flakes = np.round(layer[:height, :width, 0] * 255).astype(np.uint8)
    x = x.astype(np.float32) / np.float32(255)
    return _loops.snowed(np.dstack([x, cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)]), flakes, keep)


def frost(x: np.ndarray, severity: int) -> np.ndarray:
    weight, ice_weight = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    height, width = x.shape[:2]
    ice = _ice(int(np.random.randint(6)), height, width)  # noqa: NPY002
    top = np.random.randint(0, ice.shape[0] - height)  # noqa: NPY002
    left = np.random.randint(0, ice.shape[1] - width)  # noqa: NPY002
    return _loops.mixed(x, ice[top : top + height, left : left + width], float(weight), ice_weight)


def brightness(x: np.ndarray, severity: int) -> np.ndarray:
    return _loops.coloured(x, 1.0, 0.0, (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1])


def saturate(x: np.ndarray, severity: int) -> np.ndarray:
    gain, offset = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))[severity - 1]
    return _loops.coloured(x, gain, offset, 0.0)


def contrast(x: np.ndarray, severity: int) -> np.ndarray:
    scale = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = np.mean(x / 255.0, axis=(0, 1))
    levels = np.arange(256)[:, None] / 255.0
    return _loops.looked_up(x, _levels((levels - mean) * scale + mean))


def elastic_transform(x: np.ndarray, severity: int) -> np.ndarray:
    alpha = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity - 1]
    height, width = x.shape[:2]
    along, across, amplitude = _gaussian(height * 0.01, 3.0), _gaussian(width * 0.01, 3.0), height * 0.005

    def displacement() -> np.ndarray:
        noise = np.random.uniform(-amplitude, amplitude, size=(height, width, 1))  # noqa: NPY002
        return (_loops.blur(noise, along, across, True)[..., 0] * alpha).astype(np.float32)

    right, down = displacement(), displacement()
    return _loops.warped(x.astype(np.float32) / np.float32(255), down, right)


QUICK: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, motion_blur, zoom_blur, snow, frost, brightness, contrast, elastic_transform,
        speckle_noise, gaussian_blur, saturate,
    )
}  # fmt: skip


def _levels(x: np.ndarray) -> np.ndarray:
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


@cache
def _gaussian(sigma: float, truncate: float) -> np.ndarray:
    """Weights of a Gaussian filter from the center outwards."""
    radius = int(truncate * sigma + 0.5)
    exponents = -0.5 / (sigma * sigma) * np.arange(radius + 1) ** 2
    weights = _exponential(exponents)
    return weights / math.fsum([*weights, *weights[1:]])


def _exponential(exponents: np.ndarray) -> np.ndarray:
    """The exponential function, correctly rounded.

    The last bit of NumPy's result depends on the processor, and decides the gray level where colors are uniform.
    """
    return np.array([float(Decimal(float(exponent)).exp()) for exponent in exponents])


def _streak(x: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Blur `x` (H, W[, C]) along a line of 2 * radius + 1 pixels with the weights of half a Gaussian."""
    x = x.reshape(*x.shape[:2], -1)
    width = 2 * radius + 1
    weights = _exponential(-(np.arange(width) ** 2) / (2 * sigma**2)) / (np.sqrt(2 * np.pi) * sigma)
    weights /= math.fsum(weights)
    along = (width * np.sin(np.deg2rad(angle)), width * np.cos(np.deg2rad(angle)))
    length = math.hypot(*along)
    moves = []
    for i in range(width):
        down, right = (-math.ceil(i * part / length - 0.5) for part in along)
        # Beyond the size of the image: the library stops here, although the weights no longer sum to one.
        if abs(down) >= x.shape[0] or abs(right) >= x.shape[1]:
            break
        moves.append((down, right))
    downs, rights = np.array(moves, dtype=np.int64).T
    return _loops.streak(x, downs, rights, weights[: len(moves)])


def _zoom(x: np.ndarray, factor: float, onto: np.ndarray | None = None) -> np.ndarray:
    """Enlarge the center of `x` (H, W, C) by `factor` and add it to the top left of `onto`, or return it if None."""
    starts, sizes, wholes = [], [], []
    for side in x.shape[:2]:
        size = math.ceil(side / factor)
        sizes.append(size)
        starts.append((side - size) // 2)
        wholes.append(round(size * factor))
    if onto is None:
        onto = np.zeros((*wholes, x.shape[2]), x.dtype)
    (top, left), (high, wide) = starts, sizes
    rows = _places(high, wholes[0], min(wholes[0], onto.shape[0]))
    columns = _places(wide, wholes[1], min(wholes[1], onto.shape[1]))
    _loops.enlarge(onto, np.ascontiguousarray(x[top : top + high, left : left + wide]), *rows, *columns)
    return onto


@lru_cache(256)
def _places(size: int, total: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the first `count` of `total` pixels among `size`: lower neighbors, and weights of upper ones."""
    position = np.arange(count) * ((size - 1) / (total - 1) if total > 1 else 1.0)
    lower = np.floor(position).astype(np.int64)
    # Rounding can move the last pixel beyond the border, where SciPy uses zero.
    lower[position > size - 1] = -1
    return lower, position - np.floor(position)


@lru_cache(12)
def _ice(number: int, height: int, width: int) -> np.ndarray:
    """One of the frost images of the library, large enough for a crop of (height, width), BGR uint8."""
    name = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg", "frost6.jpg")[number]
    content = (importlib.resources.files("imagecorruptions") / "frost" / name).read_bytes()
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    scale = 1.1 * max(1.0, height / picture.shape[0], width / picture.shape[1])
    size = (math.ceil(picture.shape[1] * scale), math.ceil(picture.shape[0] * scale))
    return cv2.resize(picture, dsize=size, interpolation=cv2.INTER_CUBIC)

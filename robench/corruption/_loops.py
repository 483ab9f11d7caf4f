"""Compiled inner loops of corruptions, which process each pixel in the same order as the library.

Arithmetic is not fused or reordered, so that results equal those of the library to the last bit wherever the order of
its sums is known.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def _compiled(function: Callable) -> Any:
    # Compiled code is cached next to this file or in the user's cache folder; if neither is writable, each process
    # compiles again.
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


@_compiled
def _byte(value):
    """Convert a fraction to a gray level: clip, then truncate, as in the library."""
    return np.uint8(min(max(value, 0.0), 1.0) * 255)


@_compiled
def add(x, noise, scaled):
    """Gray levels of x / 255 + noise, or of x / 255 * (1 + noise) if `scaled`; (H, W, 3) uint8."""
    out = np.empty(x.shape, np.uint8)
    flat, flat_noise, result = x.ravel(), noise.ravel(), out.ravel()
    for i in range(flat.size):
        value = flat[i] / 255.0
        result[i] = _byte(value + value * flat_noise[i] if scaled else value + flat_noise[i])
    return out


@_compiled
def counted(counts, scale):
    """Gray levels of counts / scale."""
    out = np.empty(counts.shape, np.uint8)
    flat, result = counts.ravel(), out.ravel()
    for i in range(flat.size):
        result[i] = _byte(flat[i] / scale)
    return out


@_compiled
def blur(x, down, across, reflect):
    """A symmetric separable filter, (H, W, C) float64.

    Args:
        x: (H, W, C) float64.
        down, across: weights along each axis, from the center outwards.
        reflect: whether to mirror the image at its border instead of repeating the last pixel.
    """
    height, width, channels = x.shape
    # The compiler vectorizes loops over whole rows.
    rows = x.reshape(height, width * channels)
    middle = np.empty_like(rows)
    for i in range(height):
        line = middle[i]
        line[:] = rows[i] * down[0]
        # From the outside inwards, in the order of SciPy: on uniform colors the last bit decides the gray level.
        for k in range(down.size - 1, 0, -1):
            above, below = rows[_outside(i - k, height, reflect)], rows[_outside(i + k, height, reflect)]
            for j in range(line.size):
                line[j] += (above[j] + below[j]) * down[k]
    radius = across.size - 1
    out = np.empty_like(rows)
    wide = np.empty((width + 2 * radius) * channels)
    for i in range(height):
        wide[radius * channels : (radius + width) * channels] = middle[i]
        for j in range(radius):
            left, right = _outside(-1 - j, width, reflect), _outside(width + j, width, reflect)
            for c in range(channels):
                wide[(radius - 1 - j) * channels + c] = middle[i, left * channels + c]
                wide[(radius + width + j) * channels + c] = middle[i, right * channels + c]
        line = out[i]
        for j in range(line.size):
            line[j] = wide[radius * channels + j] * across[0]
        for k in range(across.size - 1, 0, -1):
            before, after = wide[(radius - k) * channels :], wide[(radius + k) * channels :]
            for j in range(line.size):
                line[j] += (before[j] + after[j]) * across[k]
    return out.reshape(x.shape)


@_compiled
def _outside(i, size, reflect):
    """The index inside the image for an index that may lie beyond the border."""
    if not reflect:
        return min(max(i, 0), size - 1)
    while i < 0 or i >= size:
        i = -i - 1 if i < 0 else 2 * size - 1 - i
    return i


@_compiled
def shuffle(x, reach, rounds, seed):
    """Replace each pixel by one at a distance of up to `reach`, `rounds` times, in place, for glass blur."""
    np.random.seed(seed)  # noqa: NPY002 - the generator of compiled code is separate from NumPy's
    height, width, channels = x.shape
    for _ in range(rounds):
        for i in range(height - reach, reach, -1):
            for j in range(width - reach, reach, -1):
                right = np.random.randint(-reach, reach)  # noqa: NPY002
                down = np.random.randint(-reach, reach)  # noqa: NPY002
                for c in range(channels):
                    x[i, j, c] = x[i + down, j + right, c]


@_compiled
def streak(x, downs, rights, weights):
    """The weighted sum, float64, of copies of `x` (H, W, C) shifted down and right, with repeated border pixels."""
    height, width, channels = x.shape
    out = np.zeros((height, width * channels))
    reach = np.max(np.abs(rights)) if rights.size else 0
    wide = np.empty((height, (width + 2 * reach) * channels), x.dtype)
    for i in range(height):
        for j in range(width + 2 * reach):
            for c in range(channels):
                wide[i, j * channels + c] = x[i, min(max(j - reach, 0), width - 1), c]
    for i in range(height):
        line = out[i]
        for k in range(weights.size):
            shifted = wide[min(max(i - downs[k], 0), height - 1), (reach - rights[k]) * channels :]
            for j in range(line.size):
                line[j] += weights[k] * shifted[j]
    return out.reshape(x.shape)


@_compiled
def enlarge(out, x, rows, row_weights, columns, column_weights):
    """Add `x` (h, w, C), enlarged linearly, to the top left of `out` (H, W, C).

    Args:
        rows, columns: index of the lower neighbor in `x` for each row and column of `out`, -1 for none.
        row_weights, column_weights: weights of the upper neighbors.
    """
    channels = x.shape[2]
    width = columns.size
    line = np.empty((x.shape[1] + 1, channels))
    for i in range(rows.size):
        low = rows[i]
        if low < 0:
            continue
        high = min(low + 1, x.shape[0] - 1)
        down = row_weights[i]
        for j in range(x.shape[1]):
            for c in range(channels):
                line[j, c] = x[low, j, c] * (1.0 - down) + x[high, j, c] * down
        line[x.shape[1]] = 0.0
        for j in range(width):
            left = columns[j]
            if left >= 0:
                across = column_weights[j]
                for c in range(channels):
                    value = line[left, c] * (1.0 - across) + line[left + 1, c] * across
                    out[i, j, c] += out.dtype.type(value)


@_compiled
def mean_of(x, total, layers):
    """Gray levels of (x + total) / (layers + 1), both (H, W, 3) float32."""
    out = np.empty(x.shape, np.uint8)
    flat, summed, result = x.ravel(), total.ravel(), out.ravel()
    count = np.float32(layers + 1)
    for i in range(flat.size):
        value = (flat[i] + summed[i]) / count
        result[i] = np.uint8(min(max(value, np.float32(0)), np.float32(1)) * np.float32(255))
    return out


@_compiled
def mixed(x, over, weight, over_weight):
    """Gray levels of weight * x + over_weight * over, both uint8, with the channels of `over` reversed."""
    out = np.empty(x.shape, np.uint8)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            for c in range(3):
                value = weight * x[i, j, c] + over_weight * over[i, j, 2 - c]
                out[i, j, c] = np.uint8(min(max(value, 0.0), 255.0))
    return out


@_compiled
def snowed(x, layer, keep):
    """Gray levels of a whitened image under two layers of snow, one of them rotated by 180 degrees.

    Args:
        x: (H, W, 4) float32; the fourth channel is the gray image.
        layer: (H, W) uint8.
        keep: weight of the image against its whitened version.
    """
    height, width = layer.shape
    out = np.empty((height, width, 3), np.uint8)
    keep32, rest32 = np.float32(keep), np.float32(1 - keep)
    for i in range(height):
        for j in range(width):
            light = x[i, j, 3] * np.float32(1.5) + np.float32(0.5)
            flakes, turned = layer[i, j] / 255.0, layer[height - 1 - i, width - 1 - j] / 255.0
            for c in range(3):
                white = keep32 * x[i, j, c] + rest32 * max(x[i, j, c], light)
                out[i, j, c] = _byte(white + flakes + turned)
    return out


@_compiled
def coloured(x, gain, offset, lift):
    """Gray levels of an image with its HSV saturation scaled and offset and its HSV value raised."""
    out = np.empty(x.shape, np.uint8)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            red, green, blue = x[i, j, 0] / 255.0, x[i, j, 1] / 255.0, x[i, j, 2] / 255.0
            value = max(red, green, blue)
            span = value - min(red, green, blue)
            hue, saturation = 0.0, 0.0
            if span > 0.0:
                saturation = span / value
                if blue == value:
                    hue = 4.0 + (red - green) / span
                elif green == value:
                    hue = 2.0 + (blue - red) / span
                else:
                    hue = (green - blue) / span
                hue = (hue / 6.0) % 1.0
            saturation = min(max(saturation * gain + offset, 0.0), 1.0)
            value = min(max(value + lift, 0.0), 1.0)
            sector = np.floor(hue * 6.0)
            part = hue * 6.0 - sector
            low = value * (1.0 - saturation)
            falling = value * (1.0 - part * saturation)
            rising = value * (1.0 - (1.0 - part) * saturation)
            k = int(sector) % 6
            if k == 0:
                red, green, blue = value, rising, low
            elif k == 1:
                red, green, blue = falling, value, low
            elif k == 2:
                red, green, blue = low, value, rising
            elif k == 3:
                red, green, blue = low, falling, value
            elif k == 4:
                red, green, blue = rising, low, value
            else:
                red, green, blue = value, low, falling
            out[i, j, 0], out[i, j, 1], out[i, j, 2] = _byte(red), _byte(green), _byte(blue)
    return out


@_compiled
def warped(x, down, right):
    """Gray levels of `x` (H, W, 3) float32 sampled at positions displaced by `down` and `right`, mirrored outside."""
    height, width, channels = x.shape
    out = np.empty((height, width, channels), np.uint8)
    for i in range(height):
        for j in range(width):
            y, z = i + np.float64(down[i, j]), j + np.float64(right[i, j])
            top, left = int(np.floor(y)), int(np.floor(z))
            low, across = y - top, z - left
            upper, lower = _outside(top, height, True), _outside(top + 1, height, True)
            near, far = _outside(left, width, True), _outside(left + 1, width, True)
            for c in range(channels):
                value = (
                    x[upper, near, c] * (1.0 - low) * (1.0 - across)
                    + x[upper, far, c] * (1.0 - low) * across
                    + x[lower, near, c] * low * (1.0 - across)
                    + x[lower, far, c] * low * across
                )
                single = min(max(np.float32(value), np.float32(0)), np.float32(1))
                out[i, j, c] = np.uint8(single * np.float32(255))
    return out


@_compiled
def looked_up(x, table):
    """table[x, channel], (H, W, 3) uint8."""
    out = np.empty(x.shape, np.uint8)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            for c in range(x.shape[2]):
                out[i, j, c] = table[x[i, j, c], c]
    return out

"""Images and labels as a caller has them, prepared for an attack: see `prepare`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robench.core.errors import UsageError
from robench.data._lazy_images import LazyImages
from robench.threats.threat import check_images

# How far outside [0, 1] rounding leaves pixels: undoing a normalisation takes 2e-7, in half precision it takes more
# than is taken for rounding here.
ROUNDING = 1e-5
_WHOLE = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


def prepare(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W), float32 in [0, 1], and labels (N,), int64: contiguous, on the CPU and checked.

    The caller's own are not changed, though what is returned may share their memory.

    Args:
        x: a tensor, a NumPy array, or a list of either; floats of any precision. Pixels outside [0, 1] by no more
            than `ROUNDING` are clipped.
        y: a tensor, a NumPy array or a list of whole numbers.

    Raises:
        UsageError: naming the first thing that is wrong and what to do.
    """
    images, labels = _images(x), _labels(y)
    check_images(images, labels)
    return images, labels


def _images(x: Any) -> Tensor:
    images = _tensor(x[:] if isinstance(x, LazyImages) else x, "images")
    if images.dtype in _WHOLE:
        advice = "divide by 255, as in x.float() / 255"
        raise UsageError(f"images are {images.dtype}: expected floats in [0, 1] ({advice})")
    if not images.is_floating_point():
        raise UsageError(f"images are {images.dtype}: expected floats in [0, 1]")
    images = images.to("cpu", torch.float32).contiguous()
    if not images.numel():
        return images
    low, high = float(images.min()), float(images.max())
    near = low >= -ROUNDING and high <= 1 + ROUNDING
    return images.clamp(0, 1) if near and (low < 0 or high > 1) else images


def _labels(y: Any) -> Tensor:
    labels = _tensor(y, "labels").cpu()
    return labels.long() if labels.dtype in _WHOLE else labels


def _tensor(value: Any, what: str) -> Tensor:
    """A plain, dense tensor of the values, without a graph."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = _stacked(value, what)
    if isinstance(value, Tensor):
        return _plain(value, what)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        kind = f"an array of {array.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise UsageError(f"{what} are {kind}: expected a tensor or a NumPy array of numbers")
    # torch reads neither negative strides nor another byte order nor wider floats, and warns of read-only memory.
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _stacked(values: Sequence[Any], what: str) -> Any:
    """One tensor or array of a list's: all of one shape."""
    if not any(isinstance(value, Tensor) for value in values):
        try:
            return np.array(values)
        except ValueError as error:
            raise UsageError(f"{what} are a list of different shapes: expected one shape") from error
    parts = [_tensor(value, what).cpu() for value in values]
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1:
        raise UsageError(f"{what} are a list of different shapes, {sorted(shapes)}: expected one shape")
    return torch.stack(parts)


def _plain(value: Tensor, what: str) -> Tensor:
    if value.is_nested or value.layout != torch.strided:
        kind = "a nested" if value.is_nested else f"a {str(value.layout).removeprefix('torch.')}"
        advice = "torch.nested.to_padded_tensor(...)" if value.is_nested else ".to_dense()"
        raise UsageError(f"{what} are {kind} tensor: expected a dense one, see {advice}")
    if value.is_meta:
        raise UsageError(f"{what} are on the meta device, where they have no values")
    if value.is_quantized:
        raise UsageError(f"{what} are {value.dtype}: expected floats in [0, 1], see .dequantize()")
    value = value.detach().as_subclass(Tensor)
    return value.clone() if value.is_inference() else value

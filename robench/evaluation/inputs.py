"""Validation and conversion of the images and labels that a user passes to `robench.attack`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robench.core.errors import UsageError
from robench.data._lazy_images import LazyImages
from robench.threats.threat import check_images

# Largest deviation from [0, 1] that counts as a rounding error. Undoing a normalization leaves 2e-7 in float32; in
# half precision the error exceeds this limit.
ROUNDING = 1e-5
_INTEGER_TYPES = (
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
    """Convert images to float32 (N, C, H, W) in [0, 1] and labels to int64 (N,), contiguous on the CPU.

    The arguments are not changed, but the results may share their memory.

    Args:
        x: a tensor, a NumPy array, or a list of either, with floats of any precision. Pixels outside [0, 1] by at
            most `ROUNDING` are clipped.
        y: a tensor, a NumPy array or a list of integers.

    Raises:
        UsageError: if images or labels are invalid; the message describes the first problem and its solution.
    """
    images, labels = _images(x), _labels(y)
    check_images(images, labels)
    return images, labels


def _images(x: Any) -> Tensor:
    images = _tensor(x[:] if isinstance(x, LazyImages) else x, "images")
    if images.dtype in _INTEGER_TYPES:
        raise UsageError(
            f"images are {images.dtype}: expected floats in [0, 1] (divide by 255, as in x.float() / 255)"
        )
    if not images.is_floating_point():
        raise UsageError(f"images are {images.dtype}: expected floats in [0, 1]")
    images = images.to("cpu", torch.float32).contiguous()
    if not images.numel():
        return images
    low, high = float(images.min()), float(images.max())
    in_range = low >= -ROUNDING and high <= 1 + ROUNDING
    return images.clamp(0, 1) if in_range and (low < 0 or high > 1) else images


def _labels(y: Any) -> Tensor:
    labels = _tensor(y, "labels").cpu()
    return labels.long() if labels.dtype in _INTEGER_TYPES else labels


def _tensor(value: Any, name: str) -> Tensor:
    """Convert a value to a plain, dense tensor without gradients; `name` is used in messages."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = _stacked(value, name)
    if isinstance(value, Tensor):
        return _plain(value, name)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        description = f"an array of {array.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise UsageError(f"{name} are {description}: expected a tensor or a NumPy array of numbers")
    # torch supports no negative strides, other byte orders or long doubles, and warns of read-only memory.
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _stacked(values: Sequence[Any], name: str) -> Any:
    """Stack a list of tensors, arrays or numbers of equal shape."""
    if not any(isinstance(value, Tensor) for value in values):
        try:
            return np.array(values)
        except ValueError as error:
            raise UsageError(f"{name} are a list of different shapes: expected equal shapes") from error
    tensors = [_tensor(value, name).cpu() for value in values]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise UsageError(f"{name} are a list of different shapes, {sorted(shapes)}: expected equal shapes")
    return torch.stack(tensors)


def _plain(value: Tensor, name: str) -> Tensor:
    if value.is_nested or value.layout != torch.strided:
        description = "a nested" if value.is_nested else f"a {str(value.layout).removeprefix('torch.')}"
        advice = "torch.nested.to_padded_tensor(...)" if value.is_nested else ".to_dense()"
        raise UsageError(f"{name} are {description} tensor: expected a dense one, see {advice}")
    if value.is_meta:
        raise UsageError(f"{name} are on the meta device, where they have no values")
    if value.is_quantized:
        raise UsageError(f"{name} are {value.dtype}: expected floats in [0, 1], see .dequantize()")
    value = value.detach().as_subclass(Tensor)
    return value.clone() if value.is_inference() else value

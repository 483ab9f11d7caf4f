"""Files of adversarial examples from other tools."""

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from robench.core.errors import ResourceError, RobenchError, UsageError
from robench.core.io import write_file
from robench.data._base import Images
from robench.data._numpy_files import stored
from robench.records.certificates import apply, certificates_of
from robench.records.record import Record

# Names under which tools store adversarial images (AutoAttack and RobustBench: adv_complete) and indices of images.
IMAGES = ("adv_complete", "x_adv", "adv", "advs", "adversarials", "images", "x")
IDS = ("ids", "id", "indices", "index")
# Pixels beyond [0, 1] by at most this are rounding errors.
_ROUNDING = 1e-5
# The types of arrays that are read; others, such as complex numbers, have no pixels.
_KINDS = {"bool", "bfloat16", *(f"float{bits}" for bits in (16, 32, 64))}
_KINDS |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


@dataclass(frozen=True)
class Submission:
    """Adversarial images.

    Attributes:
        x: (M, C, H, W) float32 in [0, 1].
        ids: ids of the images in their dataset, (M,) int64; None for the images of a record in their order.
    """

    x: Tensor
    ids: Tensor | None


@dataclass(frozen=True)
class _Array:
    """An array of a file.

    Attributes:
        kind: name of its type, such as "float32".
        read: returns it; not called before its shape and its kind are checked.
    """

    shape: tuple[int, ...]
    kind: str
    read: Callable[[], Tensor]


def read_submission(path: Path | str, shape: tuple[int, ...]) -> Submission:
    """Read adversarial images from a .pt, .pth, .npz, .npy or .safetensors file. Nothing in it is executed.

    Shapes are compared before images are read or converted, so a small file cannot fill the memory.

    Args:
        path: one array of images, or a mapping that has one under a name of `IMAGES` (or one array of images alone),
            and optionally the ids of the images under a name of `IDS`. Images are (N, C, H, W) or (N, H, W, C), floats
            in [0, 1] or bytes.
        shape: (N, C, H, W) of the record's images.

    Raises:
        ResourceError: when the file is missing, damaged or holds anything else than arrays.
        UsageError: for images of another shape, type or range, or more than the record has.
    """
    path = Path(path)
    arrays = _arrays(path)
    x = _prepared(path, _chosen(path, arrays), shape)
    return Submission(x, _ids(path, arrays, len(x)))


def write_images(path: Path | str, x: Tensor, ids: Tensor) -> None:
    """Write adversarial images in the form of AutoAttack and RobustBench, which `read_submission` reads.

    Args:
        path: ends in .pt, .pth, .npz or .safetensors.
        x: (N, C, H, W) float32, stored as adv_complete.
        ids: ids of the images in their dataset, (N,) int64.

    Raises:
        UsageError: for another ending.
        ResourceError: when the file exists or cannot be written.
    """
    path = Path(path)
    content = {IMAGES[0]: x.contiguous(), IDS[0]: ids}
    buffer = io.BytesIO()
    if path.suffix in (".pt", ".pth"):
        torch.save(content, buffer)
    elif path.suffix == ".npz":
        np.savez_compressed(buffer, adv_complete=x.numpy(), ids=ids.numpy())
    elif path.suffix == ".safetensors":
        buffer.write(save(content))
    else:
        raise UsageError(f"{path}: images are written to .pt, .pth, .npz or .safetensors")
    if path.exists():
        raise ResourceError(f"{path} already exists: choose another --output")
    write_file(path, buffer.getvalue())


def images_with(record: Record, images: Images) -> Tensor:
    """The record's adversarial examples, (N, C, H, W), and the clean images where there is none.

    Raises:
        ResourceError: when its files are missing or damaged.
    """
    held = certificates_of(record.folder or Path(), images, record.job.threat_model)
    places = {sample: row for row, sample in enumerate(images.ids.tolist())}
    rows, x = [places[sample] for sample in held.ids.tolist()], images.x[:].clone()
    if rows:
        delta = held.delta[list(range(len(rows)))]
        x[rows] = apply(record.job.threat_model, x[rows], delta, images.ids[rows])
    return x


def _arrays(path: Path) -> dict[str, _Array]:
    """The arrays of a file by name; an array without a name is called ""."""
    readers = {".pt": _torch, ".pth": _torch, ".npz": _numpy, ".npy": _numpy, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise UsageError(f"{path}: expected a file that ends in {', '.join(readers)}")
    with _readable(path):
        return readers[path.suffix](path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn all errors of readers, which raise many kinds on damaged files, into one line."""
    try:
        yield
    except RobenchError:
        raise
    except FileNotFoundError as error:
        raise ResourceError(f"{path}: no such file") from error
    except Exception as error:
        raise ResourceError(f"{path}: damaged, or holds more than arrays, which is not loaded") from error


def _torch(path: Path) -> dict[str, _Array]:
    with path.open("rb") as file:
        # torch does not compress, but would expand an entry of any size.
        if zipfile.is_zipfile(file) and any(
            entry.compress_type for entry in zipfile.ZipFile(file).infolist()
        ):
            raise ValueError("it is compressed")
        file.seek(0)
        # torch warns of kinds of tensors that are refused below.
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(file, map_location="cpu", weights_only=True)
    arrays = {}
    for name, value in (content if isinstance(content, Mapping) else {"": content}).items():
        arrays |= _of_value(str(name), value)
    return arrays


def _of_value(name: str, value: Any) -> dict[str, _Array]:
    """The arrays of a tensor or a list: a list of batches or images is one array, another has one for each item."""
    if isinstance(value, Tensor):
        return {name: _of_tensor(value)}
    if not isinstance(value, list | tuple) or not all(isinstance(item, Tensor) for item in value):
        return {}
    items = [_of_tensor(item) for item in value]
    batches = [item.shape if len(item.shape) == 4 else (1, *item.shape) for item in items]
    if len({(shape[1:], item.kind) for shape, item in zip(batches, items, strict=True)}) != 1:
        return {f"{name}[{place}]": item for place, item in enumerate(items)}
    shape = (sum(shape[0] for shape in batches), *batches[0][1:])
    return {name: _Array(shape, items[0].kind, partial(_joined, value, shape[1:]))}


def _joined(batches: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    return torch.cat([batch.detach().reshape(-1, *shape) for batch in batches])


def _of_tensor(tensor: Tensor) -> _Array:
    # A nested tensor has no shape.
    shape = () if tensor.is_nested else tuple(tensor.shape)
    special = {
        "nested": tensor.is_nested,
        "meta": tensor.is_meta,
        "quantized": tensor.is_quantized,
        "sparse": tensor.layout != torch.strided,
    }
    kind = next((name for name, holds in special.items() if holds), str(tensor.dtype).removeprefix("torch."))
    return _Array(shape, kind, tensor.detach)


def _numpy(path: Path) -> dict[str, _Array]:
    return {
        name: _Array(array.shape, array.kind.name, partial(_native, array.read))
        for name, array in stored(path).items()
    }


def _native(read: Callable[[], np.ndarray]) -> Tensor:
    """An array in the byte order of this machine."""
    array = read()
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))


def _safetensors(path: Path) -> dict[str, _Array]:
    return {name: _of_tensor(tensor) for name, tensor in load(path.read_bytes()).items()}


def _chosen(path: Path, arrays: Mapping[str, _Array]) -> _Array:
    """The images among the arrays of a file."""
    for name in IMAGES:
        if name in arrays and len(arrays[name].shape) == 4:
            return arrays[name]
    candidates = [array for array in arrays.values() if len(array.shape) == 4]
    if len(candidates) == 1:
        return candidates[0]
    held = (
        ", ".join(f"{name or 'array'} {array.shape}" for name, array in list(arrays.items())[:5])
        or "no arrays"
    )
    raise UsageError(
        f"{path}: expected images (N, C, H, W) under one of {', '.join(IMAGES)}; it holds {held}"
    )


def _read(path: Path, array: _Array, name: str) -> Tensor:
    if array.kind not in _KINDS:
        raise UsageError(f"{path}: {name} of type {array.kind}: expected ordinary floats or integers")
    with _readable(path):
        return array.read()


def _prepared(path: Path, array: _Array, shape: tuple[int, ...]) -> Tensor:
    n, channels, height, width = shape
    last = array.shape[1:] == (height, width, channels)
    if array.shape[1:] != shape[1:] and not last:
        raise UsageError(f"{path}: images of shape {array.shape[1:]}, where the record's are {shape[1:]}")
    if array.shape[0] > n:
        raise UsageError(
            f"{path}: {array.shape[0]} images for a record of {n}: expected at most one for each"
        )
    if not array.shape[0]:
        raise UsageError(f"{path}: it holds no images")
    images = _read(path, array, "images")
    if last and array.shape[1:] != shape[1:]:
        images = images.permute(0, 3, 1, 2)
    x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if not x.isfinite().all():
        raise UsageError(f"{path}: pixels that are NaN or infinite")
    low, high = float(x.min()), float(x.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise UsageError(f"{path}: pixels from {low:.4g} to {high:.4g}, where [0, 1] is expected")
    return x.clamp(0, 1).contiguous()


def _ids(path: Path, arrays: Mapping[str, _Array], n: int) -> Tensor | None:
    name = next((name for name in IDS if name in arrays), None)
    if name is None:
        return None
    refused = UsageError(f"{path}: {name} must be {n} different integers, one for each image")
    if arrays[name].shape != (n,):
        raise refused
    ids = _read(path, arrays[name], name)
    if ids.is_floating_point() or len(ids.long().unique()) != n:
        raise refused
    return ids.long()

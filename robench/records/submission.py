"""Files of adversarial examples from other tools."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from robench.core.errors import ResourceError, UsageError
from robench.core.io import write_file
from robench.data._base import Images
from robench.records.certificates import apply, certificates_of
from robench.records.record import Record

# Names under which tools store adversarial images (AutoAttack and RobustBench: adv_complete) and indices of images.
IMAGES = ("adv_complete", "x_adv", "adv", "advs", "adversarials", "images", "x")
IDS = ("ids", "id", "indices", "index")
# Pixels beyond [0, 1] by at most this are rounding errors.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Submission:
    """Adversarial images.

    Attributes:
        x: (M, C, H, W) float32 in [0, 1].
        ids: ids of the images in their dataset, (M,) int64; None for the images of a record in their order.
    """

    x: Tensor
    ids: Tensor | None


def read_submission(path: Path | str, shape: tuple[int, ...]) -> Submission:
    """Read adversarial images from a .pt, .pth, .npz, .npy or .safetensors file. Nothing in it is executed.

    Args:
        path: one array of images, or a mapping that has one under a name of `IMAGES` (or one array of images alone),
            and optionally the ids of the images under a name of `IDS`. Images are (N, C, H, W) or (N, H, W, C), floats
            in [0, 1] or bytes.
        shape: (C, H, W) of the images.

    Raises:
        ResourceError: when the file is missing, damaged or holds anything else than arrays.
        UsageError: for images of another shape or range.
    """
    path = Path(path)
    tensors = _tensors(path)
    images = _chosen(path, tensors)
    return Submission(_prepared(path, images, shape), _ids(path, tensors, len(images)))


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


def _tensors(path: Path) -> dict[str, Tensor]:
    readers = {".pt": _torch, ".pth": _torch, ".npz": _numpy, ".npy": _numpy, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise UsageError(f"{path}: expected a file that ends in {', '.join(readers)}")
    try:
        content = readers[path.suffix](path)
    except FileNotFoundError as error:
        raise ResourceError(f"{path}: no such file") from error
    # Readers raise many kinds of errors on damaged files.
    except Exception as error:
        raise ResourceError(f"{path}: damaged, or holds more than arrays, which is not loaded") from error
    if not isinstance(content, Mapping):
        content = {"": content}
    tensors = {}
    for name, value in content.items():
        if isinstance(value, list | tuple) and value and all(isinstance(item, Tensor) for item in value):
            value = torch.cat([item if item.dim() == 4 else item[None] for item in value])
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="))))
        if isinstance(value, Tensor):
            tensors[str(name)] = value.detach().cpu()
    return tensors


def _torch(path: Path) -> Any:
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _numpy(path: Path) -> Any:
    with path.open("rb") as file:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        return {name: content[name] for name in content.files}


def _safetensors(path: Path) -> Any:
    return load(path.read_bytes())


def _chosen(path: Path, tensors: Mapping[str, Tensor]) -> Tensor:
    """The images among the arrays of a file."""
    for name in IMAGES:
        if name in tensors and tensors[name].dim() == 4:
            return tensors[name]
    candidates = [tensor for tensor in tensors.values() if tensor.dim() == 4]
    if len(candidates) == 1:
        return candidates[0]
    held = (
        ", ".join(f"{name or 'array'} {tuple(t.shape)}" for name, t in list(tensors.items())[:5])
        or "no arrays"
    )
    raise UsageError(
        f"{path}: expected images (N, C, H, W) under one of {', '.join(IMAGES)}; it holds {held}"
    )


def _prepared(path: Path, images: Tensor, shape: tuple[int, ...]) -> Tensor:
    channels, height, width = shape
    last = tuple(images.shape[1:]) == (height, width, channels)
    if tuple(images.shape[1:]) != shape and not last:
        raise UsageError(f"{path}: images of shape {tuple(images.shape[1:])}, where the record's are {shape}")
    if last and tuple(images.shape[1:]) != shape:
        images = images.permute(0, 3, 1, 2)
    if not len(images):
        raise UsageError(f"{path}: it holds no images")
    x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if not x.isfinite().all():
        raise UsageError(f"{path}: pixels that are NaN or infinite")
    low, high = float(x.min()), float(x.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise UsageError(f"{path}: pixels from {low:.4g} to {high:.4g}, where [0, 1] is expected")
    return x.clamp(0, 1).contiguous()


def _ids(path: Path, tensors: Mapping[str, Tensor], n: int) -> Tensor | None:
    for name in IDS:
        if name in tensors:
            ids = tensors[name]
            if ids.dim() != 1 or ids.is_floating_point() or len(ids) != n or len(ids.unique()) != n:
                raise UsageError(f"{path}: {name} must be {n} different integers, one for each image")
            return ids.long()
    return None

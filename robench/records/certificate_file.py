"""The layout of adversarials.safetensors: its tensors and their types. Reading it does not import torch."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from robench.core.io import open_ordinary
from robench.records import _tensors
from robench.records._compressed import LARGEST

FILE = "adversarials.safetensors"
# Types and numbers of dimensions. Perturbations are exact, or rounded to grains of one or two bytes and compressed.
EXACT = {"delta": ("float32", 4), "id": ("int64", 1)}
ROUNDED = {
    "grain": ("float64", 0),
    "grains": ("uint8", 1),
    "grains_end": ("int64", 1),
    "grains_id": ("int64", 1),
}
# Before version 0.2 they were not compressed.
UNCOMPRESSED = {"grain": ("float64", 0), "grains": (None, 4), "grains_id": ("int64", 1)}


def check_header(file: IO[bytes]) -> dict[str, _tensors.Header]:
    """The headers of the tensors in a file of certificates. The tensors are not read.

    Raises:
        ValueError: in one line, when it is truncated, damaged or holds other tensors.
        OSError: when it cannot be read.
    """
    tensors = _tensors.read_headers(file)
    rounded = ROUNDED if "grains_end" in tensors else UNCOMPRESSED if "grains" in tensors else {}
    expected = EXACT | rounded
    fits = set(tensors) == set(expected) and all(
        len(tensors[name].shape) == dim and (kind is None or tensors[name].dtype == np.dtype(kind))
        for name, (kind, dim) in expected.items()
    )
    if not fits or not _counts_fit(tensors):
        shown = {name: (header.shape, str(header.dtype)) for name, header in sorted(tensors.items())[:8]}
        raise ValueError(
            "expected delta (M, C, H, W) float32 and id (M,) int64, and optionally grains of one or two bytes, "
            f"found {str(shown)[:400]}"
        )
    return tensors


def tensor_names(folder: Path) -> tuple[str, ...]:
    """The names of the tensors in a record's certificates; none if the file cannot be read."""
    try:
        with open_ordinary(Path(folder) / FILE) as file:
            return tuple(sorted(_tensors.read_headers(file)))
    except (OSError, ValueError):
        return ()


def _counts_fit(tensors: Mapping[str, _tensors.Header]) -> bool:
    if len(tensors["delta"]) != len(tensors["id"]):
        return False
    if "grains" not in tensors:
        return True
    grains = tensors["grains"]
    if "grains_end" in tensors:
        fits = math.prod(tensors["delta"].shape[1:]) <= LARGEST
        return fits and len(tensors["grains_end"]) == len(tensors["grains_id"])
    alike = not len(tensors["delta"]) or tensors["delta"].shape[1:] == grains.shape[1:]
    return alike and grains.dtype.name in ("int8", "int16") and len(grains) == len(tensors["grains_id"])

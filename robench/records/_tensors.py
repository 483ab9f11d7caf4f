"""A safetensors file written piece by piece, when what it holds is more than fits in memory.

Byte for byte what `safetensors.torch.save` gives: an eight-byte length, a JSON header, then the tensors, those of the
widest type first and of one type by name.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# In safetensors' own order, from the last to the first.
TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int16: "I16",
    torch.int8: "I8",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of the file.

    Attributes:
        dtype, shape: of the whole.
        parts: gives it from its beginning to its end, split along the first dimension.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: Callable[[], Iterator[Tensor]]


def encode(entries: Mapping[str, Entry]) -> Iterator[bytes]:
    """The file's bytes, a part of a tensor at a time."""
    order = sorted(entries, key=lambda name: (list(TYPES).index(entries[name].dtype), name))
    header, at = {}, 0
    for name in order:
        entry = entries[name]
        size = int(np.prod(entry.shape)) * entry.dtype.itemsize
        header[name] = {
            "dtype": TYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        for part in entries[name].parts():
            yield part.contiguous().numpy().tobytes()

"""Write and read a safetensors file piece by piece, because its content may exceed memory.

The bytes are those of `safetensors.torch.save`: an eight-byte length, a JSON header, then the tensors, ordered by
decreasing type width and then by name.
"""

import io
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from robench.core import strict_json
from robench.core.row_file import RowFile

# Boards read headers without torch, so types are those of numpy.
if TYPE_CHECKING:
    from torch import Tensor

# In safetensors' own order, from the last to the first.
_TYPES = {"I64": "int64", "F64": "float64", "F32": "float32", "I16": "int16", "I8": "int8", "U8": "uint8"}
TYPES = {np.dtype(kind): name for name, kind in _TYPES.items()}
_DTYPES = {name: dtype for dtype, name in TYPES.items()}
_DAMAGED = "damaged or truncated"


@dataclass(frozen=True)
class Entry:
    """One tensor of the file.

    Attributes:
        dtype: name of the type, such as "float32".
        shape: of the whole tensor.
        parts: yields the tensor in order, split along the first dimension.
    """

    dtype: str
    shape: tuple[int, ...]
    parts: "Callable[[], Iterator[Tensor]]"


def encode(entries: Mapping[str, Entry]) -> Iterator[bytes]:
    """The file's bytes, a part of a tensor at a time."""
    order = sorted(entries, key=lambda name: (list(_TYPES.values()).index(entries[name].dtype), name))
    header, at = {}, 0
    for name in order:
        entry = entries[name]
        dtype = np.dtype(entry.dtype)
        size = math.prod(entry.shape) * dtype.itemsize
        offsets = [at, at + size]
        header[name] = {"dtype": TYPES[dtype], "shape": list(entry.shape), "data_offsets": offsets}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        for part in entries[name].parts():
            yield part.contiguous().numpy().tobytes()


@dataclass(frozen=True)
class Header:
    """The header of one tensor in a file.

    Attributes:
        start: offset in the file, in bytes.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, file: IO[bytes]) -> RowFile:
        """The rows of the tensor in its file. Closing them closes the file."""
        return RowFile(file, self.shape, self.dtype, self.start)


def read_headers(file: IO[bytes]) -> dict[str, Header]:
    """The headers of the tensors in a file, by name. The tensors are not read.

    Raises:
        ValueError: in one line, when it is truncated or damaged, or holds a tensor of another type than `TYPES`.
        OSError: when it cannot be read.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(size - 8, strict_json.LONGEST):
        raise ValueError(_DAMAGED)
    entries = strict_json.loads(file.read(length))
    if not isinstance(entries, dict):
        raise ValueError(_DAMAGED)
    entries.pop("__metadata__", None)
    try:
        headers = {name: _header(entry, 8 + length) for name, entry in entries.items()}
        ends = {name: 8 + length + int(entry["data_offsets"][1]) for name, entry in entries.items()}
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("damaged or of other types of tensors") from None
    # The tensors must fill the file without gaps, from the header to the end.
    at = 8 + length
    for name, header in sorted(headers.items(), key=lambda item: (item[1].start, item[1].size)):
        if min((0, *header.shape)) < 0 or header.start != at or header.start + header.size != ends[name]:
            raise ValueError(_DAMAGED)
        at = ends[name]
    if at != size:
        raise ValueError(_DAMAGED)
    return headers


def _header(entry: dict[str, Any], start: int) -> Header:
    return Header(
        _DTYPES[entry["dtype"]], tuple(map(int, entry["shape"])), start + int(entry["data_offsets"][0])
    )

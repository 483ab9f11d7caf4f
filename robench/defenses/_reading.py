"""Read files of weights as plain data, without executing anything in them."""

import json
import re
import warnings
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from robench.core.errors import ResourceError
from robench.defenses._file_kinds import INDEX, SAFETENSORS, TORCH, kind_of

# torch's message about a class that may not be unpickled.
_REFUSED = re.compile(r"unsupported global(?:: global)? ([\w.]+)", re.IGNORECASE)


class _Plain:
    """Stand-in for a plain value beside the weights: accepts any content and discards it."""

    def __new__(cls, *parts: Any, **more: Any) -> "_Plain":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class Options(_Plain):
    """Stand-in for the options of a training script, such as an `argparse.Namespace`.

    Attributes:
        values: the options that are texts or numbers; others are discarded.
    """

    values: dict[str, Any]

    def __new__(cls, *parts: Any, **more: Any) -> "Options":
        options: Any = super().__new__(cls)
        options.values = {}
        return options

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.values = {key: value for key, value in state.items() if isinstance(value, str | int | float)}


def _table(*parts: Any) -> dict[Any, Any]:
    return {}


def _row(*parts: Any) -> list[Any]:
    return []


# The classes of these names are never called. Real NumPy arrays, for example, are unsafe: the dtype flags come from the
# file and decide whether the bytes are interpreted as pointers.
_VALUES = (
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in (
        "multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer"
    )),
    *(f"numpy.{name}" for name in ("dtype", "ndarray", "bool_", "bool", "str_", "bytes_")),
    *(f"numpy.{kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64)),
    *(f"{place}.{name}" for place in ("builtins", "__builtin__") for name in (
        "list", "dict", "int", "float", "str", "bool", "tuple", "frozenset", "slice", "range", "bytes", "long"
    )),
    *(f"pathlib{place}.{pure}{system}Path" for place in ("", "._local") for pure in ("", "Pure")
      for system in ("", "Posix", "Windows")),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    "decimal.Decimal", "fractions.Fraction", "uuid.UUID",
    "zoneinfo.ZoneInfo._unpickle", "time.struct_time",
)  # fmt: skip
_STAND_INS: list[Any] = [
    *((_Plain, name) for name in _VALUES),
    *((_table, name) for name in ("collections.defaultdict", "collections.ChainMap")),
    *((Options, name) for name in ("argparse.Namespace", "types.SimpleNamespace")),
    (_row, "collections.deque"),
]


def read_content(path: Path) -> Any:
    """The content of the file at `path`, with tensors on the CPU; the file's kind is detected from its content.

    Safetensors and an index of shards give a mapping of tensors. `torch.save` files give what was saved: tensors,
    containers and plain values; values such as dates and NumPy arrays are replaced by empty stand-ins.

    Raises:
        ResourceError: if the file is of another kind, is damaged, or holds a class that is not a plain value.
    """
    kind = kind_of(path)
    if kind not in _READERS:
        raise ResourceError(f"checkpoint {path} is {kind.words}: {kind.mend}")
    return _READERS[kind](path)


def shards_of(index: Path) -> list[Path]:
    """The files that an index of shards names, in order; they must lie in its folder.

    Raises:
        ResourceError: if it names a file elsewhere.
    """
    content = json.loads(index.read_bytes())["weight_map"]
    names = sorted(set(content.values())) if all(isinstance(v, str) for v in content.values()) else [""]
    for name in names:
        if not name or name in (".", "..") or any(c in name for c in "/\\\0:") or name == index.name:
            raise ResourceError(
                f"checkpoint {index} names a shard {json.dumps(name)}: expected file names in its own folder"
            )
    if not names:
        raise ResourceError(f"checkpoint {index} names no shards: get it again")
    return [index.parent / name for name in names]


def _safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ResourceError(
            f"checkpoint {path} is not a complete safetensors file ({error}): get it again"
        ) from error


def _unpickled(path: Path) -> Any:
    try:
        # Given a path, torch would infer the kind of file from its name.
        with (
            torch.serialization.safe_globals(_STAND_INS),
            warnings.catch_warnings(action="ignore"),
            path.open("rb") as file,
        ):
            return torch.load(file, map_location="cpu", weights_only=True)
    # torch.load raises many kinds of errors on damaged files.
    except Exception as error:
        if refused := _REFUSED.search(str(error)):
            raise ResourceError(
                f"checkpoint {path} holds a {refused[1]}, which is not unpickled: only tensors and plain values are; "
                "save the state_dict() of the network, or, if you trust the file, convert it to safetensors"
            ) from error
        raise ResourceError(
            f"checkpoint {path} is damaged, or holds more than tensors and is not unpickled: get it again, "
            "or convert it to safetensors"
        ) from error


def _shards(index: Path) -> dict[str, Any]:
    content = json.loads(index.read_bytes())["weight_map"]
    parts = {}
    for path in shards_of(index):
        if not path.is_file():
            raise ResourceError(
                f"checkpoint {index} needs {path.name} in its folder, which is missing: put it there"
            )
        if kind_of(path) == INDEX:
            raise ResourceError(
                f"checkpoint {index} names another index, {path.name}: expected files of weights"
            )
        parts[path.name] = read_content(path)
        if not isinstance(parts[path.name], Mapping):
            raise ResourceError(f"checkpoint {path} holds no table of tensors: get it again")
    for key, name in content.items():
        if key not in parts[name]:
            raise ResourceError(
                f"checkpoint {index} says that {name} holds {key}, which it does not: get both again"
            )
    merged = dict(chain.from_iterable(part.items() for part in parts.values()))
    if len(merged) != sum(map(len, parts.values())):
        raise ResourceError(f"checkpoint {index} has shards that hold the same tensor twice: get them again")
    return merged


_READERS = {SAFETENSORS: _safetensors, TORCH: _unpickled, INDEX: _shards}

"""Detect the kind of a file by its content, whatever its name."""

import json
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from robench.core.errors import ResourceError

_HEAD = 4096
# torch.save writes a zip archive, and before release 1.6 a pickle that begins with this number.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")
_INDEX_LIMIT = 2**27
_AGAIN = "get it again"
_UNPACK = "unpack it and use the file inside"


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: "safetensors", "torch" or "index" for files of weights; empty for all others.
        words: description with its article.
        mend: advice for a file without weights.
    """

    name: str
    words: str
    mend: str = _AGAIN


SAFETENSORS = Kind("safetensors", "a safetensors file")
TORCH = Kind("torch", "a file of torch.save")
INDEX = Kind("index", "an index of shards")

_STARTS = (
    (b"\x1f\x8b", Kind("", "a gzip archive", _UNPACK)),
    (b"BZh", Kind("", "a bzip2 archive", _UNPACK)),
    (b"\xfd7zXZ\x00", Kind("", "an xz archive", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Kind("", "a 7z archive", _UNPACK)),
    (b"Rar!", Kind("", "a rar archive", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", Kind("", "a zstd archive", _UNPACK)),
    (b"\x89HDF", Kind("", "an HDF5 file, as Keras writes", "convert it to safetensors")),
    (b"GGUF", Kind("", "a GGUF file", "use the weights that it was converted from")),
    (b"\x93NUMPY", Kind("", "a NumPy array", "convert it to safetensors")),
    (
        b"\x80",
        Kind("", "a pickle that torch.save did not write", "get it again, or convert it to safetensors"),
    ),
    (
        b"version https://git-lfs",
        Kind("", "a Git LFS pointer, not the file", "run git lfs pull, or download it"),
    ),
)


def kind_of(path: Path) -> Kind:
    """The kind of the file at `path`.

    Raises:
        ResourceError: if it cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head.startswith(b"PK"):
            return _archive(path)
    except OSError as error:
        raise ResourceError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    if not head:
        return Kind("", "an empty file")
    if head.startswith(_LEGACY):
        return TORCH
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < _INDEX_LIMIT:
        return SAFETENSORS
    if head[257:262] == b"ustar":
        return Kind("", "a tar archive", _UNPACK)
    known = (kind for start, kind in _STARTS if head.startswith(start))
    return next(known, None) or _text(path, head, size)


def refuse_strays(path: Path) -> None:
    """Refuse what is often saved in place of weights, whatever the format: an empty file, an HTML page or a Git LFS
    pointer.

    Raises:
        ResourceError: naming what it is.
    """
    kind = kind_of(path)
    if not kind.name and kind.words.startswith(("an empty", "a page", "a Git LFS")):
        raise ResourceError(f"{path} is {kind.words}: {kind.mend}")


def _archive(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return Kind("", "a zip archive that is damaged or cut off")
    inside = {name.partition("/")[2] or name for name in names}
    if "data.pkl" in inside and "constants.pkl" in inside:
        return Kind("", "a TorchScript program", f"name it with --defense torchscript:{path}")
    if "archive_format" in inside:
        return Kind(
            "", "a program of torch.export", "load it in a function of yours, --defense python:mine.load"
        )
    if "data.pkl" in inside:
        return TORCH
    if names and all(name.endswith(".npy") for name in names):
        return Kind("", "a NumPy archive", "convert it to safetensors")
    first = f" of {names[0]}" if names else ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return Kind("", f"a zip archive{first}{more}", _UNPACK)


def _text(path: Path, head: bytes, size: int) -> Kind:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(_PAGES):
        return Kind("", "a page in HTML, not the file itself", "download it from the URL of the file")
    if start.startswith(b"{") and size < _INDEX_LIMIT:
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict) and isinstance(content.get("weight_map"), dict):
            return INDEX
        return Kind("", "a JSON file, but not an index of shards", "use the file of weights")
    if head.isascii() and b"\x00" not in head:
        return Kind("", f'a text that begins "{head[:40].decode().splitlines()[0]}"')
    return Kind("", "not a complete safetensors or torch.save file")

"""Corrupted images kept on disk, for the next defense: a file a chunk of images, checked when it is read.

A file is found by what decides its pixels and begins with the sha256 of its content and of that key, so that one that
was cut off, damaged, exchanged with another or written by another version is made again and never believed. The oldest
go when the limit is reached.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from robench.core.cache import cache_folder
from robench.core.errors import UsageError
from robench.core.io import Damaged, lock, open_lock, read_sealed, seal, write_quickly

LIMIT = "ROBENCH_CACHE_LIMIT"
_DEFAULT = "8G"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SUFFIX, _SIZE, _LOCK = ".chunk", ".size", ".lock"
# The disk is left so many bytes whatever the limit says, and a file that nobody finished is swept after an hour.
_SPARE, _STALE = 2**30, 3600.0


def default_folder() -> Path:
    """Where corrupted images are kept: the folder "corruptions" of the cache."""
    return cache_folder("corruptions")


def default_limit() -> int:
    """How many bytes may be kept: the variable ROBENCH_CACHE_LIMIT, such as 500M or 20G, or 8G; 0 keeps none.

    Raises:
        UsageError: when the variable is no size.
    """
    said = os.environ.get(LIMIT) or _DEFAULT
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", said.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"{LIMIT}={said}: expected a size such as 500M or 20G, or 0 for no cache")
    return int(float(match.group(1)) * _UNITS[match.group(2).upper()])


@dataclass(frozen=True)
class Cache:
    """A folder of chunks.

    Attributes:
        folder: made when the first is kept.
        limit: bytes that the files may take together.
        since: what was used after this moment is never pushed out: a set larger than the limit would else push out
            its own beginning, and nothing would ever be found.
    """

    folder: Path = field(default_factory=default_folder)
    limit: int = field(default_factory=default_limit)
    since: float = field(default_factory=time.time)

    def get(self, key: str) -> bytes | None:
        """What was kept under `key`, or None; a damaged file is removed."""
        path = self._path(key)
        try:
            content = read_sealed(path, key)
            os.utime(path)
        except Damaged:
            with suppress(OSError):
                path.unlink()
            return None
        except OSError:
            return None
        return content

    def put(self, key: str, content: bytes) -> bool:
        """Keep `content`, pushing out the oldest; False where there is no room for it, or the disk refuses."""
        path, content = self._path(key), seal(content, key)
        size = len(content)
        if size > self.limit:
            return False
        try:
            with self._locked():
                total = self._total()
                if total + size > self.limit:
                    total = self._shrink(self.limit - size)
                if total + size > self.limit or shutil.disk_usage(self.folder).free < size + _SPARE:
                    self._note(total)
                    return False
                path.parent.mkdir(exist_ok=True)
                descriptor, waiting = tempfile.mkstemp(suffix=".tmp", dir=self.folder)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                before = path.stat().st_size if path.exists() else 0
                Path(waiting).replace(path)
                self._note(total + size - before)
        except OSError:
            # A cache is a convenience: the images are there all the same.
            return False
        return True

    def usage(self) -> tuple[int, int]:
        """How many files there are, and how many bytes they take."""
        sizes = [entry.st_size for _, entry in self._files()]
        return len(sizes), sum(sizes)

    def clear(self) -> tuple[int, int]:
        """Remove everything; how many files and bytes that was."""
        if not self.folder.is_dir():
            return 0, 0
        with self._locked():
            found = self.usage()
            for path, _ in self._files():
                path.unlink(missing_ok=True)
            self._note(0)
        return found

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob(f"*/*{_SUFFIX}"):
            # Another process may remove it between the two looks.
            with suppress(FileNotFoundError):
                yield path, path.stat()

    def _total(self) -> int:
        """Bytes of all files, as noted by whoever wrote last; counted where nobody did."""
        try:
            return int((self.folder / _SIZE).read_text())
        except (OSError, ValueError):
            return self._shrink(self.limit)

    def _note(self, total: int) -> None:
        write_quickly(self.folder / _SIZE, str(total).encode())

    def _shrink(self, wanted: int) -> int:
        """Remove the oldest until `wanted` bytes are left, and what was never finished; the bytes that are left."""
        for path in self.folder.glob("*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()
        found = sorted(self._files(), key=lambda item: item[1].st_mtime)
        total = sum(entry.st_size for _, entry in found)
        for path, entry in found:
            if total <= wanted or entry.st_mtime >= self.since:
                break
            path.unlink(missing_ok=True)
            total -= entry.st_size
        return total

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Held by one process at a time, and freed by the system when its holder dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock(self.folder / _LOCK)
        try:
            lock(descriptor, wait=True)
            yield
        finally:
            os.close(descriptor)

"""An on-disk cache of corrupted images for use by further defenses, with one verified file for each chunk of images.

The key of a file covers everything that determines its pixels. A file begins with the sha256 of its content and key, so
a file that is truncated, damaged, swapped or from another version is not used and is computed again. The oldest files
are removed when the limit is reached.
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
# Bytes left free on the disk regardless of the limit, and seconds after which unfinished files are removed.
_MIN_FREE, _STALE = 2**30, 3600.0


def default_limit() -> int:
    """The size limit in bytes, from the environment variable ROBENCH_CACHE_LIMIT, such as 500M or 20G.

    The default is 8G; 0 disables the cache.

    Raises:
        UsageError: if the variable is not a size.
    """
    text = os.environ.get(LIMIT) or _DEFAULT
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"{LIMIT}={text}: expected a size such as 500M or 20G, or 0 for no cache")
    return int(float(match.group(1)) * _UNITS[match.group(2).upper()])


@dataclass(frozen=True)
class Cache:
    """A folder of cached chunks.

    Attributes:
        folder: created with the first chunk.
        limit: maximum total size in bytes.
        since: files used after this time are never removed. Otherwise a set larger than the limit would evict its own
            first chunks, and the cache would never hit.
    """

    folder: Path = field(default_factory=lambda: cache_folder("corruptions"))
    limit: int = field(default_factory=default_limit)
    since: float = field(default_factory=time.time)

    def get(self, key: str) -> bytes | None:
        """The content stored under `key`, or None; a damaged file is removed."""
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
        """Store `content` and remove the oldest files if needed; False if it does not fit or cannot be written."""
        path, content = self._path(key), seal(content, key)
        size = len(content)
        if size > self.limit:
            return False
        try:
            with self._locked():
                total = self._total()
                if total + size > self.limit:
                    total = self._shrink(self.limit - size)
                if total + size > self.limit or shutil.disk_usage(self.folder).free < size + _MIN_FREE:
                    self._note(total)
                    return False
                path.parent.mkdir(exist_ok=True)
                descriptor, temporary = tempfile.mkstemp(suffix=".tmp", dir=self.folder)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                replaced_size = path.stat().st_size if path.exists() else 0
                Path(temporary).replace(path)
                self._note(total + size - replaced_size)
        except OSError:
            # The cache is optional: the caller still has the images.
            return False
        return True

    def usage(self) -> tuple[int, int]:
        """The number of files and their total size in bytes."""
        sizes = [entry.st_size for _, entry in self._files()]
        return len(sizes), sum(sizes)

    def clear(self) -> tuple[int, int]:
        """Remove all files; return their number and total size in bytes."""
        if not self.folder.is_dir():
            return 0, 0
        with self._locked():
            usage = self.usage()
            for path, _ in self._files():
                path.unlink(missing_ok=True)
            self._note(0)
        return usage

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob(f"*/*{_SUFFIX}"):
            # Another process may remove the file in between.
            with suppress(FileNotFoundError):
                yield path, path.stat()

    def _total(self) -> int:
        """The total size in bytes as noted by the last writer; counted if there is no note."""
        try:
            return int((self.folder / _SIZE).read_text())
        except (OSError, ValueError):
            return self._shrink(self.limit)

    def _note(self, total: int) -> None:
        write_quickly(self.folder / _SIZE, str(total).encode())

    def _shrink(self, limit: int) -> int:
        """Remove stale unfinished files, then the oldest files until at most `limit` bytes remain; return that size."""
        for path in self.folder.glob("*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()
        files = sorted(self._files(), key=lambda item: item[1].st_mtime)
        total = sum(entry.st_size for _, entry in files)
        for path, entry in files:
            if total <= limit or entry.st_mtime >= self.since:
                break
            path.unlink(missing_ok=True)
            total -= entry.st_size
        return total

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold a lock that the system releases if the process dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock(self.folder / _LOCK)
        try:
            lock(descriptor, wait=True)
            yield
        finally:
            os.close(descriptor)

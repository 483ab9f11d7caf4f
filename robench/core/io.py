"""File input and output that survives a killed process, a full disk and concurrent writers."""

import errno
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import lock_descriptor

from robench.core.errors import ResourceError

_LOCK = ".lock"
# Seconds between two attempts to lock a folder.
_POLL = 0.05
# Maximum length of a process id, in bytes.
_PID = 20
# Flags that only some systems define; on Windows, O_BINARY turns off the translation of line ends.
_NO_LINK, _NO_WAIT, _BYTES = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
_FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name))
# The options that choose another output location.
_OPTIONS = "--results or --output"


@contextmanager
def disk_errors(path: Path, options: str = _OPTIONS) -> Iterator[None]:
    """Convert an OSError inside the block to a one-line error about `path`.

    Args:
        options: the command-line options that choose another location, for the message.

    Raises:
        ResourceError: for a full disk, a folder that cannot be created or written, and similar failures.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceError(
                f"no space left on the disk for {path}: free some space or choose another disk with {options}, "
                "then repeat the command; everything saved before is intact"
            ) from error
        raise ResourceError(
            f"cannot write {path} ({error.strerror or error}): choose a writable place with {options}"
        ) from error


# The content of a file: bytes, pieces, or a function of the sha256 digests of the files written before it.
Content = bytes | Iterable[bytes] | Callable[[Mapping[str, str]], bytes]


def write_whole(
    folder: Path, contents: Mapping[str, Content], make_way: Callable[[], object] = lambda: None
) -> None:
    """Write files atomically: after a failure each file is either the old one or the new one.

    All files are first written under temporary names and flushed, then renamed in the given order. A full disk
    therefore leaves every old file unchanged, and the last file appears after all others.

    Args:
        folder: created if missing.
        contents: file name -> content.
        make_way: called when all files are on disk and none is renamed yet.

    Raises:
        ResourceError: if the disk is full or the folder cannot be written.
    """
    with disk_errors(folder):
        _write(folder, contents, make_way)


def write_file(path: Path, content: Content, options: str = _OPTIONS) -> None:
    """Write one file atomically, like `write_whole`.

    Args:
        options: the command-line options that choose another file, for the message.

    Raises:
        ResourceError: if the disk is full or the file cannot be written.
    """
    with disk_errors(path, options):
        _write(path.absolute().parent, {path.name: content}, lambda: None)


def _write(folder: Path, contents: Mapping[str, Content], make_way: Callable[[], object]) -> None:
    waiting: dict[str, str] = {}
    digests: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, content in contents.items():
            descriptor, waiting[name] = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=folder)
            with os.fdopen(descriptor, "wb") as file:
                _let_others_read(descriptor)
                digest = hashlib.sha256()
                content = content(digests) if callable(content) else content
                for piece in [content] if isinstance(content, bytes) else content:
                    file.write(piece)
                    digest.update(piece)
                digests[name] = digest.hexdigest()
                file.flush()
                os.fsync(descriptor)
        make_way()
        for name in contents:
            Path(waiting[name]).replace(folder / name)
            del waiting[name]
        sync_folder(folder)
    finally:
        for temporary in waiting.values():
            with suppress(OSError):
                Path(temporary).unlink()


def _let_others_read(descriptor: int) -> None:
    """Make a file created by mkstemp readable for everyone; Windows has no such modes."""
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, 0o644)


def write_quickly(path: Path, content: bytes) -> None:
    """Write a file that can be rebuilt. It is complete or absent if the process is killed, but not flushed, so a power
    cut may leave it empty. Its folder must exist.

    Raises:
        ResourceError: if the disk is full or the folder cannot be written.
    """
    with disk_errors(path):
        descriptor, waiting = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _let_others_read(descriptor)
                file.write(content)
            Path(waiting).replace(path)
        except OSError:
            Path(waiting).unlink(missing_ok=True)
            raise


def refuse_link(folder: Path) -> None:
    """Refuse to write into a symbolic link, because the files would land elsewhere.

    Raises:
        ResourceError: if `folder` is a symbolic link.
    """
    if folder.is_symlink():
        raise ResourceError(
            f"{folder} is a symbolic link, and robench does not write through links: remove it"
        )


def is_file(path: Path) -> bool:
    """Whether `path` is a file; no file has a name that the system refuses, such as one that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def open_ordinary(path: Path) -> BinaryIO:
    """Open a regular file for reading; named pipes and devices are refused because they may never end.

    Raises:
        OSError: if it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | _BYTES)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(descriptor, "rb")


def read_ordinary(path: Path, most: int = -1) -> bytes:
    """Read the first `most` bytes of a file, or all of it for -1. See `open_ordinary`."""
    with open_ordinary(path) as file:
        return file.read(most)


class Damaged(Exception):
    """A sealed file is missing, truncated or altered; the message names the file and the reason."""


_SEAL = hashlib.sha256().digest_size


def seal(content: bytes, purpose: str = "") -> bytes:
    """Prefix `content` with the sha256 of its purpose and itself, which `read_sealed` checks.

    Args:
        purpose: what the content is for; reading it for another purpose fails.
    """
    return _digest(content, purpose) + content


def read_sealed(path: Path, purpose: str = "") -> bytes:
    """Read a file written with `seal`.

    Raises:
        Damaged: if it is missing, unreadable, changed in any byte, or sealed for another purpose.
    """
    try:
        data = read_ordinary(path)
    except OSError as error:
        raise Damaged(f"{path.name}: {error.strerror or error}") from error
    content = data[_SEAL:]
    if len(data) < _SEAL or data[:_SEAL] != _digest(content, purpose):
        raise Damaged(f"{path.name} is damaged: its sha256 does not match the recorded one")
    return content


def _digest(content: bytes, purpose: str) -> bytes:
    digest = hashlib.sha256(f"{len(purpose)} {purpose}".encode() if purpose else b"")
    digest.update(content)
    return digest.digest()


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut; does nothing on Windows, which cannot open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def claim(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Lock `folder` against other runs, in this process or another, until the block ends.

    The lock belongs to the open file, so the system releases it when the process ends for any reason.

    Args:
        patience: seconds to wait for a run that holds the lock.

    Raises:
        ResourceError: if another run holds the lock, or the folder cannot be written or is a symbolic link.
    """
    refuse_link(folder)
    path = folder / _LOCK
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path, folder, time.monotonic() + patience)
        try:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, str(os.getpid()).encode())
        except OSError:
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        # Windows cannot delete an open file; a lock file that is left behind locks nothing.
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def is_claimed(folder: Path) -> bool:
    """Whether a run has locked `folder`. Nothing is written."""
    try:
        descriptor = open_lock(folder / _LOCK, create=False)
    except PermissionError:
        return True
    # The file is missing or is not a lock file, so no run has locked the folder.
    except OSError:
        return False
    try:
        # filelock has no shared locks: two processes that check at the same moment may each report a run.
        return not lock(descriptor)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def lock(descriptor: int, wait: bool = False) -> bool:
    """Lock an open file until it is closed; False if another process holds the lock. True on systems without locks.

    The classes of filelock are not used because they open the file themselves: they would create it, write through a
    hard link and block on a pipe. Open the file with `open_lock` instead.
    """
    try:
        return lock_descriptor(descriptor, blocking=wait, poll_interval=0.005)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return True


def open_lock(path: Path, create: bool = True) -> int:
    """Open a lock file; symbolic links, pipes, devices and files of other programs are refused.

    Args:
        create: create the file if missing.

    Raises:
        OSError: if it cannot be opened, or is not a lock file.
    """
    if not _NO_LINK and path.is_symlink():
        raise OSError(errno.ELOOP, "a symbolic link")
    # Non-blocking, because opening a pipe waits for its other end.
    # Opened for writing even to check the lock, because NFS locks nothing otherwise.
    flags = os.O_RDWR | _NO_LINK | _NO_WAIT | _BYTES | (os.O_CREAT if create else 0)
    descriptor = os.open(path, flags, 0o644)
    facts = os.fstat(descriptor)
    if stat.S_ISREG(facts.st_mode) and facts.st_nlink <= 1 and facts.st_size <= _PID:
        holder = _holder(descriptor)
        if not holder or holder.isdigit():
            return descriptor
    os.close(descriptor)
    raise OSError(errno.EEXIST, f"{path.name} is not a lock file of robench: remove it")


def _holder(descriptor: int) -> bytes:
    """The id of the process that holds a lock; empty if it cannot be read."""
    # Windows does not let other processes read a locked file.
    with suppress(PermissionError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        return os.read(descriptor, _PID)
    return b""


def _lock(path: Path, folder: Path, deadline: float) -> int:
    while True:
        descriptor = open_lock(path)
        try:
            locked = lock(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        if not locked:
            holder = _holder(descriptor).decode("ascii", "replace") or "unknown"
            os.close(descriptor)
            if time.monotonic() < deadline:
                time.sleep(_POLL)
                continue
            raise ResourceError(
                f"another run is writing {folder} (pid {holder}): wait for it, or choose another with {_OPTIONS}"
            )
        # The previous holder removes its lock file: a lock on a deleted file protects nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
        os.close(descriptor)

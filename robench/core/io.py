"""Writing to disk so that a kill, a full disk or a second writer loses nothing."""

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import lock_descriptor

from robench.core.errors import ResourceError

_LOCK = ".lock"
# Bytes of a process's number.
_PID = 20
# What only some systems know; Windows translates line ends unless it is asked for bytes.
_NO_LINK, _NO_WAIT, _BYTES = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
_FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name))
# By what a user gives another place.
_OPTIONS = "--results or --output"


@contextmanager
def disk_errors(path: Path, options: str = _OPTIONS) -> Iterator[None]:
    """Turn an OSError inside into one line about `path`, which another place can be given for by `options`.

    Raises:
        ResourceError: for a full disk, a folder that cannot be made or written, and the like.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceError(
                f"no space left on the disk for {path}: free some or give another by {options}, "
                "then repeat the command; what was saved before is intact"
            ) from error
        raise ResourceError(
            f"cannot write {path} ({error.strerror or error}): give one that you may write by {options}"
        ) from error


# What a file is to hold: all of it, a piece at a time, or what the sha256 of the files before it decide.
Content = bytes | Iterable[bytes] | Callable[[Mapping[str, str]], bytes]


def write_whole(
    folder: Path, contents: Mapping[str, Content], make_way: Callable[[], object] = lambda: None
) -> None:
    """Write files so that each is either the old one or the new one, whatever happens.

    All are first written beside their places and flushed; only then are they renamed, in the order given. So
    a full disk leaves every old file as it was, and the last name appears when all others are there.

    Args:
        folder: made if need be.
        contents: file name -> content.
        make_way: called when all is on the disk and nothing is renamed yet.

    Raises:
        ResourceError: when the disk is full or the folder cannot be written.
    """
    with disk_errors(folder):
        _write(folder, contents, make_way)


def write_file(path: Path, content: Content, options: str = _OPTIONS) -> None:
    """Write one file as `write_whole` does; a message names it, and `options` by which another is given.

    Raises:
        ResourceError: when the disk is full or the file cannot be written.
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
                for piece in _pieces(content, digests):
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
    """mkstemp creates files for their owner alone, but records are there to be read; Windows has no such modes."""
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, 0o644)


def write_quickly(path: Path, content: bytes) -> None:
    """Write a file that can be made again: whole or not there when the process is killed, but not flushed, so that a
    power cut may leave it empty. Its folder must exist.

    Raises:
        ResourceError: when the disk is full or the folder cannot be written.
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
    """Refuse a folder of robench's own making that is a symbolic link: what is written there would land elsewhere.

    Raises:
        ResourceError: when it is one.
    """
    if folder.is_symlink():
        raise ResourceError(f"{folder} is a symbolic link, which is not written through: remove it")


def open_ordinary(path: Path) -> BinaryIO:
    """A file opened for reading, which a named pipe or a device, that may never end, is not.

    Raises:
        OSError: when it cannot be opened, or is no ordinary file.
    """
    descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | _BYTES)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no ordinary file")
    return os.fdopen(descriptor, "rb")


def read_ordinary(path: Path, most: int = -1) -> bytes:
    """The first `most` bytes of a file; all of them for -1. See `open_ordinary`."""
    with open_ordinary(path) as file:
        return file.read(most)


class Damaged(Exception):
    """A sealed file is missing, cut off, or not what was written; the message names the file and the reason."""


_SEAL = hashlib.sha256().digest_size


def seal(content: bytes, purpose: str = "") -> bytes:
    """`content` behind the sha256 of itself and its purpose: what `read_sealed` checks.

    Args:
        purpose: what the content is for; the file is no answer for another purpose.
    """
    return _digest(content, purpose) + content


def read_sealed(path: Path, purpose: str = "") -> bytes:
    """The content of a file that `seal` made.

    Raises:
        Damaged: when it is missing, unreadable, changed in any byte, or sealed for another purpose.
    """
    try:
        data = read_ordinary(path)
    except OSError as error:
        raise Damaged(f"{path.name}: {error.strerror or error}") from error
    content = data[_SEAL:]
    if len(data) < _SEAL or data[:_SEAL] != _digest(content, purpose):
        raise Damaged(f"{path.name} is damaged: its sha256 is not the one that was noted")
    return content


def _digest(content: bytes, purpose: str) -> bytes:
    digest = hashlib.sha256(f"{len(purpose)} {purpose}".encode() if purpose else b"")
    digest.update(content)
    return digest.digest()


def _pieces(content: Content, digests: Mapping[str, str]) -> Iterable[bytes]:
    if callable(content):
        content = content(digests)
    return [content] if isinstance(content, bytes) else content


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut, where a folder can be opened: Windows cannot."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold `folder` against other runs, in this process or another, until the block ends.

    The lock belongs to the open file, so the system frees it when the holder dies, however it dies.

    Raises:
        ResourceError: when another run holds it, or the folder cannot be written or is a symbolic link.
    """
    refuse_link(folder)
    path = folder / _LOCK
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path, folder)
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
        # Windows keeps a file that is open; a lock file that is left behind locks nothing.
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def is_claimed(folder: Path) -> bool:
    """Whether a run holds `folder`. Nothing is written."""
    try:
        descriptor = open_lock(folder / _LOCK, create=False)
    except PermissionError:
        return True
    # Whatever lies there instead of a lock, no run holds the folder by it.
    except OSError:
        return False
    try:
        # filelock has no shared locks: two processes that look at the same moment may each take the other for a run.
        return not lock(descriptor)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def lock(descriptor: int, wait: bool = False) -> bool:
    """Lock an open file until it is closed; False if another process has locked it. Without locks in the system, True.

    filelock's own classes open the file by themselves, so they would create it, write through a hard link and wait for
    a pipe; `open_lock` opens it instead.
    """
    try:
        return lock_descriptor(descriptor, blocking=wait, poll_interval=0.005)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return True


def open_lock(path: Path, create: bool = True) -> int:
    """A descriptor of a lock file, which a symbolic link, a pipe, a device or somebody else's file is not.

    Args:
        create: make it if need be.

    Raises:
        OSError: when it cannot be opened, or is no lock file.
    """
    if not _NO_LINK and path.is_symlink():
        raise OSError(errno.ELOOP, "a symbolic link")
    # Not waiting: a pipe would let us wait for its other end.
    # For writing in any case, without which NFS locks nothing.
    flags = os.O_RDWR | _NO_LINK | _NO_WAIT | _BYTES | (os.O_CREAT if create else 0)
    descriptor = os.open(path, flags, 0o644)
    facts = os.fstat(descriptor)
    if stat.S_ISREG(facts.st_mode) and facts.st_nlink <= 1 and facts.st_size <= _PID:
        holder = _holder(descriptor)
        if not holder or holder.isdigit():
            return descriptor
    os.close(descriptor)
    raise OSError(errno.EEXIST, f"{path.name} is no lock file of robench: remove it")


def _holder(descriptor: int) -> bytes:
    """The number of the process that holds a lock; empty where that cannot be read."""
    # Windows lets no one else read what is locked.
    with suppress(PermissionError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        return os.read(descriptor, _PID)
    return b""


def _lock(path: Path, folder: Path) -> int:
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
            raise ResourceError(
                f"another run is writing {folder} (pid {holder}): wait for it, or give another by --results or --output"
            )
        # The holder before us removes its file: a lock on a file that is gone holds nothing.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
        os.close(descriptor)

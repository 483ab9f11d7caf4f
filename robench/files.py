"""Files written whole: a reader sees the old content or the new, never a part, whenever a kill comes."""

import os
from pathlib import Path

from robench.errors import ResourceError


def write_whole(path: Path, content: bytes) -> None:
    """Write a temporary file beside `path`, force it to disk, and rename it over `path`.

    Raises:
        ResourceError: when the folder cannot be written, or the disk is full; what stood there still stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True) if path.parent.is_dir() else None
        raise ResourceError(
            f"cannot write {path}: {error.strerror or error}: free the disk or choose another folder"
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

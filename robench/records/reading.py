"""Files of one name under folders of others, found whatever else lies there."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robench.core.errors import ResourceError


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that could not be used, and why, in one line."""

    file: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"

    @classmethod
    def of(cls, file: Path, error: Exception) -> "LeftOut":
        """`error`'s text without the name of the file, which its message may begin with."""
        text = " ".join(str(error).split()) or type(error).__name__
        return cls(file, text.removeprefix(f"{file}: "))


def files_named(name: str, root: Path | str) -> Iterator[Path | LeftOut]:
    """Every regular file of that name under `root`, or `root` itself where it is a file, in the order of their paths.

    Links to folders are not followed. A folder that cannot be listed, and what has the name and is no file, is left
    out.

    Raises:
        ResourceError: when `root` is not there.
    """
    root = Path(root)
    if not root.exists():
        raise ResourceError(f"{root}: no such folder: robench run writes records there, --results elsewhere")
    if not root.is_dir():
        yield root if root.is_file() else LeftOut(root, "no regular file")
        return
    lost: list[LeftOut] = []

    def lose(error: OSError) -> None:
        lost.append(LeftOut(Path(error.filename or root), error.strerror or type(error).__name__))

    for folder, folders, files in os.walk(root, onerror=lose):
        yield from lost
        lost.clear()
        folders.sort()
        if name in files or name in folders:
            path = Path(folder, name)
            yield path if path.is_file() else LeftOut(path, "no regular file")
    yield from lost

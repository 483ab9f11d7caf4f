"""Find files of one name under a folder, whatever else it contains."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robench.core.errors import ResourceError, one_line


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that could not be used, and why, in one line."""

    file: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"

    @classmethod
    def of(cls, file: Path, error: Exception) -> "LeftOut":
        """The file with the text of `error`, without the file name that the text may begin with."""
        return cls(file, one_line(error, None).removeprefix(f"{file}: "))


def files_named(name: str, root: Path | str) -> Iterator[Path | LeftOut]:
    """Every regular file of that name under `root`, or `root` itself if it is a file, sorted by path.

    Links to folders are not followed. Folders that cannot be listed, and anything of that name that is not a file, are
    yielded as `LeftOut`.

    Raises:
        ResourceError: when `root` does not exist.
    """
    root = Path(root)
    if not root.exists():
        raise ResourceError(f"{root}: no such folder: robench run writes records there, --results elsewhere")
    if not root.is_dir():
        yield root if root.is_file() else LeftOut(root, "not a regular file")
        return
    left_out: list[LeftOut] = []

    def leave_out(error: OSError) -> None:
        left_out.append(LeftOut(Path(error.filename or root), error.strerror or type(error).__name__))

    for folder, folders, files in os.walk(root, onerror=leave_out):
        yield from left_out
        left_out.clear()
        folders.sort()
        if name in files or name in folders:
            path = Path(folder, name)
            yield path if path.is_file() else LeftOut(path, "not a regular file")
    yield from left_out


def read_all(
    name: str, roots: Iterable[Path], read: Callable[[Path], Any], wanted: Callable[[Path, Path], bool]
) -> tuple[list[Any], list[LeftOut]]:
    """Read every file of that name under the roots once, sorted by path.

    Args:
        read: returns what is in a file, or `LeftOut`, or raises ResourceError.
        wanted: whether a file counts, from its path and its root.

    Returns:
        What was read, and what could not be used.

    Raises:
        ResourceError: when a root does not exist.
    """
    results: dict[Path, Any] = {}
    for root in roots:
        for file in files_named(name, root):
            if isinstance(file, LeftOut):
                results[file.file] = file
            elif wanted(file, root) and (place := file.resolve()) not in results:
                try:
                    results[place] = read(file)
                except ResourceError as error:
                    results[place] = LeftOut.of(file, error)
    left_out = [result for result in results.values() if isinstance(result, LeftOut)]
    return [result for result in results.values() if not isinstance(result, LeftOut)], left_out

"""What a folder of records no longer needs: partial runs, superseded records, what a kill left behind."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from robench.core.errors import ResourceError
from robench.core.io import disk_errors, is_claimed
from robench.records import record
from robench.records.store import PARTIAL, SUPERSEDED

KINDS = ("partial", "superseded", "temporary")


@dataclass(frozen=True)
class Waste:
    """Something that may go: a folder or a file, of one of `KINDS`."""

    path: Path
    kind: str
    size: int


def waste(root: Path | str, kinds: Sequence[str] = KINDS) -> Iterator[Waste]:
    """What `prune` takes away under a folder of records: partial runs, superseded records, temporary files.

    What a run is writing at this moment is left out.

    Raises:
        ResourceError: when the folder is not there.
    """
    root = Path(root)
    if not root.is_dir():
        raise ResourceError(f"{root}: no such folder: robench run writes records there, --results elsewhere")
    for path, folders, files in os.walk(root):
        folder = Path(path)
        found = [(folder / name, kind) for name in sorted(folders) if (kind := _kind_of_folder(folder, name))]
        found += [(folder / name, "temporary") for name in sorted(files) if _is_temporary(name)]
        taken = {each.name for each, _ in found}
        folders[:] = sorted(
            name for name in folders if name not in taken and not (folder / name).is_symlink()
        )
        if found and not _in_use(folder):
            yield from (Waste(each, kind, _size(each)) for each, kind in found if kind in kinds)


def _kind_of_folder(folder: Path, name: str) -> str:
    if (folder / name).is_symlink():
        return ""
    if name == PARTIAL:
        return "partial"
    if folder.name == SUPERSEDED:
        # A copy that was never finished, or a record whose removal was cut short.
        whole = not name.startswith(".") and (folder / name / record.FILE).is_file()
        return "superseded" if whole else "temporary"
    return "temporary" if name.startswith(".") and name.endswith(PARTIAL) else ""


def _is_temporary(name: str) -> bool:
    """Files that `write_whole` was killed over."""
    return name.startswith(".") and name.endswith(".tmp")


def _in_use(folder: Path) -> bool:
    return is_claimed(folder.parent if folder.name == SUPERSEDED else folder)


def prune(found: Iterable[Waste]) -> None:
    """Take it away. Of a record its record.json goes first: what a kill leaves behind is no record.

    Raises:
        ResourceError: when something cannot be removed.
    """
    for each in found:
        with disk_errors(each.path):
            if each.path.is_dir():
                (each.path / record.FILE).unlink(missing_ok=True)
                shutil.rmtree(each.path)
                if each.path.parent.name == SUPERSEDED and not any(each.path.parent.iterdir()):
                    each.path.parent.rmdir()
            else:
                each.path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.lstat().st_size for each in files)

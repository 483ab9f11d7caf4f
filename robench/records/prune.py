"""Find and remove what a folder of records no longer needs: partial runs, superseded records, temporary files."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from robench.core.errors import ResourceError
from robench.core.io import disk_errors, is_claimed
from robench.records import certification, record
from robench.records.estimate import SUFFIX
from robench.records.store import PARTIAL, SUPERSEDED, slug

KINDS = ("partial", "superseded", "temporary")


@dataclass(frozen=True)
class Waste:
    """A removable folder or file, of one of `KINDS`."""

    path: Path
    kind: str
    size: int


def waste(root: Path | str, kinds: Sequence[str] = KINDS) -> Iterator[Waste]:
    """What `prune` removes under a folder of records: partial runs, superseded records, temporary files.

    Files of running processes are left out.

    Raises:
        ResourceError: when the folder does not exist.
    """
    root = Path(root)
    if not root.is_dir():
        raise ResourceError(f"{root}: no such folder: robench run writes records there, --results elsewhere")
    for path, folders, files in os.walk(root):
        folder = Path(path)
        removable = [
            (folder / name, kind)
            for name in sorted(folders)
            if (kind := _kind_of_folder(folder, name, folder != root and _is_shelf(folder)))
        ]
        # Files that an interrupted `write_whole` left.
        leftovers = sorted(name for name in files if name.startswith(".") and name.endswith(".tmp"))
        removable += [(folder / name, "temporary") for name in leftovers]
        taken = {path.name for path, _ in removable}
        folders[:] = sorted(n for n in folders if n not in taken and not (folder / n).is_symlink())
        if removable and not _in_use(folder):
            yield from (Waste(path, kind, _size(path)) for path, kind in removable if kind in kinds)


def _is_shelf(folder: Path) -> bool:
    """Whether a folder holds superseded results: it lies in the folder of a result or an unfinished run.

    Any other folder of this name is a user's own, such as a whole folder of records that were put away.
    """
    names = (record.FILE, certification.FILE, PARTIAL)
    return folder.name == SUPERSEDED and any((folder.parent / name).exists() for name in names)


def _kind_of_folder(folder: Path, name: str, shelf: bool) -> str:
    if (folder / name).is_symlink():
        return ""
    if name == PARTIAL:
        return "" if _goes_on(folder) else "partial"
    if shelf:
        # A copy that was never finished, or a result whose removal was cut short.
        files = (folder / name / record.FILE, folder / name / certification.FILE)
        whole = not name.startswith(".") and any(file.is_file() for file in files)
        return "superseded" if whole else "temporary"
    return "temporary" if name.startswith(".") and name.endswith(PARTIAL) else ""


def _goes_on(folder: Path) -> bool:
    """Whether these partial results are those of an estimate, which a run of the whole suite continues."""
    with suppress(ResourceError):
        return record.read_record(folder.with_name(f"{folder.name}-{slug(SUFFIX)}")).is_estimate
    return False


def _in_use(folder: Path) -> bool:
    folder = folder.parent if folder.name == SUPERSEDED else folder
    return any(map(is_claimed, (folder, *(folder / PARTIAL).glob("share-*"))))


def prune(items: Iterable[Waste]) -> None:
    """Remove the items. A record.json is removed before the other files, so an interruption leaves no broken record.

    Raises:
        ResourceError: when something cannot be removed.
    """
    for item in items:
        with disk_errors(item.path):
            if item.path.is_dir():
                (item.path / record.FILE).unlink(missing_ok=True)
                shutil.rmtree(item.path)
                if item.path.parent.name == SUPERSEDED and not any(item.path.parent.iterdir()):
                    item.path.parent.rmdir()
            else:
                item.path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.lstat().st_size for file in files)

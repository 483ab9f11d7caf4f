"""Results on another file system, such as `s3://bucket/results`, by fsspec.

A remote folder has a copy on this machine, in the cache, which the rest of robench reads and writes as an ordinary
folder. `pull` brings what has changed in the remote folder, `push` sends what has changed in the copy. The record.json
of a record and the state of an unfinished run are sent last, and hold the digests of the other files, so another
machine never takes half a record for a whole one.

Remote file systems have no locks. If two machines run the same record at the same time, both compute it, and the record
of the last one stays. Runs on one machine are kept apart by the locks of the copy.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from robench.core.cache import cache_folder
from robench.core.errors import ResourceError, RobenchError, one_line
from robench.core.io import claim, write_whole
from robench.records.store import PARTIAL

# Seconds between two times that the state of an unfinished run is sent.
_INTERVAL = 30.0
# Files that make others valid are sent after them.
_LAST = ("state", "record.json", "certification.json")
# In the copy: the state of each file when it was last the same on both sides, and the URL.
_MANIFEST, _URL = ".synced.json", ".url"
# Seconds to wait for another process that updates the manifest.
_PATIENCE = 30.0


def local_copy(place: Path | str, pull: bool = False, unfinished: bool = False) -> Path:
    """The folder on this machine that stands for a place: the copy of a URL's, or the place itself.

    Args:
        pull: whether to bring all records of the remote folder.
        unfinished: whether to bring unfinished runs as well.

    Raises:
        ResourceError: if the file system is unknown or cannot be read.
    """
    if isinstance(place, Path) or "://" not in place:
        return Path(place)
    remote = RemoteFolder(place)
    if pull:
        remote.pull(remote.local if unfinished else None)
    return remote.local


def remote_of(path: Path | str) -> "RemoteFolder | None":
    """The remote folder whose copy contains a path; None for an ordinary path."""
    root = cache_folder("remote")
    try:
        name = Path(path).relative_to(root).parts[0]
        return RemoteFolder((root / name / _URL).read_text())
    except (ValueError, IndexError, OSError):
        return None


def shown(path: Path | str) -> str:
    """A path for messages: in the copy of a remote folder, its URL."""
    remote = remote_of(path)
    return remote.url_of(Path(path)) if remote else str(path)


def push(path: Path | str) -> None:
    """Send what has changed in a folder, if it is in the copy of a remote folder."""
    if remote := remote_of(path):
        remote.push(Path(path))


# The folders inside blocks of `synced`, and when each was sent.
_open: "dict[Path, float]" = {}


@contextmanager
def synced(folder: Path) -> Iterator[None]:
    """Inside the block, the folder of a record is up to date; its changes are sent at the end, also after an error.

    For an ordinary folder, nothing is done.
    """
    remote = remote_of(folder)
    if remote is None:
        yield
        return
    remote.pull(folder)
    _open[folder] = time.monotonic()
    try:
        yield
    finally:
        del _open[folder]
        remote.push(folder)


def push_if_due() -> None:
    """Send what has changed in the folders inside blocks of `synced`, every half a minute."""
    for folder, last in list(_open.items()):
        if time.monotonic() - last >= _INTERVAL:
            push(folder)
            _open[folder] = time.monotonic()


class RemoteFolder:
    """A folder of results on another file system.

    Args:
        url: of any file system that fsspec knows.

    Attributes:
        local: the copy on this machine.

    Raises:
        ResourceError: if fsspec has no such file system here.
    """

    def __init__(self, url: str):
        # Imported late, because most commands have ordinary folders.
        import fsspec

        self.url = str(url).rstrip("/")
        with self._errors():
            self.files, root = fsspec.url_to_fs(self.url)
        self.root = str(root).rstrip("/")
        self.local = cache_folder("remote") / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        if not (self.local / _URL).is_file():
            write_whole(self.local, {_URL: self.url.encode()})

    def url_of(self, path: Path) -> str:
        """The URL of a file or folder in the copy."""
        return f"{self.url}/{path.relative_to(self.local).as_posix()}".removesuffix("/.")

    def pull(self, folder: Path | None = None) -> None:
        """Bring the files that have changed in the remote folder since the last time.

        Args:
            folder: the part of the copy that is needed; None for all records, without unfinished runs.

        Raises:
            ResourceError: if the remote folder cannot be read.
        """
        part = folder.relative_to(self.local) if folder else None
        known, changes = self._known(part), {}
        with self._errors():
            present = self._present(part)
            for name, token in present.items():
                path = self.local / name
                # A newer file here, from a run that was killed, stays.
                if known.get(name, {}).get("remote") != token or not path.exists():
                    write_whole(path.parent, {path.name: self.files.cat_file(f"{self.root}/{name}")})
                    changes[name] = {"remote": token, "local": _stamp(path)}
        for name in known.keys() - present.keys():
            (self.local / name).unlink(missing_ok=True)
            changes[name] = None
        self._remember(changes)

    def push(self, folder: Path | None = None) -> None:
        """Send the files that have changed in the copy since the last time, and delete those that are gone.

        Raises:
            ResourceError: if the remote folder cannot be written.
        """
        folder = folder or self.local
        known, changes = self._known(folder.relative_to(self.local)), {}
        paths = {path.relative_to(self.local).as_posix(): path for path in _files(folder)}
        try:
            with self._errors():
                for name in sorted(paths, key=lambda name: (PurePosixPath(name).name in _LAST, name)):
                    stamp, target = _stamp(paths[name]), f"{self.root}/{name}"
                    if stamp and known.get(name, {}).get("local") != stamp:
                        self.files.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
                        self.files.put_file(str(paths[name]), target)
                        changes[name] = {"remote": self._token(target), "local": stamp}
                for name in known.keys() - paths.keys():
                    if self.files.exists(f"{self.root}/{name}"):
                        self.files.rm_file(f"{self.root}/{name}")
                    changes[name] = None
        finally:
            self._remember(changes)

    def _present(self, part: Path | None) -> dict[str, str]:
        """The files in a part of the remote folder, each with a token that changes with its content."""
        place = f"{self.root}/{part.as_posix()}".removesuffix("/.") if part else self.root
        self.files.invalidate_cache()
        if not self.files.exists(place):
            return {}
        present = {}
        for target in map(str, self.files.find(place)):
            name = target[len(self.root) :].lstrip("/")
            if "\\" in name or ".." in PurePosixPath(name).parts:
                raise ResourceError(f"{self.url} has a file {name}, which lies outside of it")
            # Hidden files are the copy's own: a remote `.url` could send results elsewhere.
            if not _is_hidden(name) and _is_in(name, part):
                present[name] = self._token(target)
        return present

    def _token(self, target: str) -> str:
        self.files.invalidate_cache()
        return str(self.files.ukey(target))

    def _known(self, part: Path | None) -> dict[str, Any]:
        try:
            known = json.loads((self.local / _MANIFEST).read_text())
        except (OSError, ValueError):
            return {}
        return {name: facts for name, facts in known.items() if _is_in(name, part)}

    def _remember(self, changes: dict[str, Any]) -> None:
        if not changes:
            return
        with claim(self.local / ".manifest", _PATIENCE):
            known = self._known(Path()) | changes
            known = {name: facts for name, facts in known.items() if facts}
            write_whole(self.local, {_MANIFEST: json.dumps(known).encode()})

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RobenchError:
            raise
        except ImportError as error:
            # fsspec names the package: "Install s3fs to access S3".
            words = str(error).split()
            package = words[1] if words[:1] == ["Install"] and len(words) > 1 else ""
            mend = f": pip install {package}" if package else ""
            raise ResourceError(f"{self.url}: {error}{mend}") from None
        except Exception as error:
            raise ResourceError(f"{self.url}: {one_line(error)}") from error


def _is_in(name: str, part: Path | None) -> bool:
    """Whether a file belongs to a part of the folder; None for all except unfinished runs."""
    path = PurePosixPath(name)
    if part is not None:
        return path.is_relative_to(part.as_posix())
    return not any(folder.endswith(PARTIAL) for folder in path.parts)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != PARTIAL for part in PurePosixPath(name).parts)


def _files(folder: Path) -> Iterator[Path]:
    """The files to send: no locks and no temporary files."""
    for parent, _, names in os.walk(folder):
        for name in names:
            if not _is_hidden(name):
                yield Path(parent) / name


def _stamp(path: Path) -> list[int]:
    """Changes with the content of a file; empty if there is none."""
    try:
        facts = path.stat()
    except OSError:
        return []
    return [facts.st_size, facts.st_mtime_ns, facts.st_ino]

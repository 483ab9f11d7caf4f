"""Find a checkpoint by a path, or by a URL from which it is downloaded on first use."""

import hashlib
import os
import re
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from robench.core.cache import cache_folder
from robench.core.errors import ResourceError, UsageError, shortened
from robench.core.io import is_file
from robench.core.trust import admit
from robench.defenses._file_kinds import INDEX, kind_of
from robench.defenses._reading import shards_of

_CHUNK = 2**20
_TIMEOUT = 60
_SHA256 = re.compile(r"[0-9a-f]{64}")


def hf_hub_download(*arguments: Any, **options: Any) -> str:
    """The function of huggingface_hub, imported when it is needed: its import takes a while."""
    from huggingface_hub import hf_hub_download as download

    return download(*arguments, **options)


@dataclass(frozen=True)
class Fetched:
    """A checkpoint on this machine.

    Attributes:
        path: of its file.
        weights: the requested set of weights in it; empty for the default one.
        notes: messages for the user, one line each.
    """

    path: Path
    weights: str = ""
    notes: tuple[str, ...] = ()


def fetch(location: str | Path, folder: Path, sha256: str = "") -> Fetched:
    """The file of a checkpoint; remote files are downloaded on first use.

    Args:
        location: a path, relative to `folder` (or to the one that ROBENCH_CHECKPOINTS names) or absolute;
            `hf://owner/name/file`; or an https URL. A suffix `#NAME` selects a set of weights in the file, and
            `#sha256=DIGEST` gives the expected digest; join both by "&".
        sha256: expected digest of a downloaded file, from another source; empty if unknown.

    Raises:
        UsageError: for a location of another kind.
        Untrusted: for a location that was read from a file, unless it is a path below `folder`.
        ResourceError: if the file is missing, cannot be downloaded, or does not have the expected digest.
    """
    if "://" in str(location):
        admit(location, "is downloaded")
    elif Path(location).is_absolute() or ".." in Path(location).parts or str(location).startswith("~"):
        admit(location, "is a file in another folder")
    place, weights, expected = split_location(str(location), folder)
    scheme, separator, rest = place.partition("://")
    known = expected or sha256
    if not separator:
        path = _local(place, folder)
    elif scheme == "hf":
        path = _from_hub(place, rest, known)
    elif scheme == "https":
        path = _download_or_fail(place, lambda: _download(place, known))
    else:
        raise UsageError(
            f'checkpoint "{place}" is neither a path, nor hf://owner/name/file, nor an https URL'
        )
    if expected and (digest := sha256_of(path)) != expected:
        raise ResourceError(
            f"checkpoint {place} has sha256 {digest}, expected {expected}: get the file again"
        )
    notes: tuple[str, ...] = ()
    if separator and not known:
        pin = f"add '#sha256={sha256_of(path)}' to pin it"
        notes = (f"no sha256 is known for {place}, so the file is not verified; {pin}",)
    return Fetched(path, weights, notes)


def split_location(location: str, folder: Path = Path()) -> tuple[str, str, str]:
    """Split a location into place, set of weights and sha256; the name of an existing file may contain "#".

    Raises:
        UsageError: for a malformed digest.
    """
    place, separator, fragment = location.rpartition("#")
    if not separator or ("://" not in location and is_file(folder / Path(location).expanduser())):
        return location, "", ""
    weights, digest = [], ""
    for part in fragment.split("&"):
        if part.startswith("sha256="):
            digest = part.removeprefix("sha256=").lower()
            if not _SHA256.fullmatch(digest):
                raise UsageError(f'checkpoint "{location}": expected sha256= and 64 hexadecimal digits')
        else:
            weights.append(part)
    return place, "&".join(weights), digest


def _local(place: str, folder: Path) -> Path:
    path = folder / Path(place).expanduser()
    other_copy = Path(os.environ.get("ROBENCH_CHECKPOINTS") or folder) / place
    found = next((copy for copy in (path, other_copy) if is_file(copy)), None)
    if found is None:
        raise ResourceError(
            f"checkpoint {shortened(str(path))} is missing: put it there or choose another with --checkpoint"
        )
    return found


def _from_hub(place: str, rest: str, sha256: str) -> Path:
    owner, _, name_and_file = rest.partition("/")
    name, _, file = name_and_file.partition("/")
    if not (owner and name and file):
        raise UsageError(f'malformed checkpoint "{place}": expected hf://owner/name/file')
    repository = f"{owner}/{name}"

    def download(remote_path: str, again: bool = False) -> Path:
        get = partial(hf_hub_download, repository, remote_path, **({"force_download": True} if again else {}))
        return _download_or_fail(place, lambda: Path(get()))

    path = download(file)
    if kind_of(path) == INDEX:
        for shard in shards_of(path):
            download(str(PurePosixPath(file).with_name(shard.name)))
    # A cached file may be damaged.
    return download(file, again=True) if sha256 and sha256_of(path) != sha256 else path


def _download_or_fail(location: str, get: Callable[[], Path]) -> Path:
    try:
        return get()
    except ResourceError:
        raise
    # Hub, proxy and socket errors have no narrower common base class.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ResourceError(
            f"checkpoint {location} cannot be downloaded ({reason}): get the file another way and pass its path "
            "with --checkpoint"
        ) from error


def _download(url: str, sha256: str) -> Path:
    """The file at `url`; a cached copy is used if it has the given or the recorded sha256."""
    folder = cache_folder("checkpoints")
    name = Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).name[-80:] or "checkpoint"
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    recorded = path.with_name(f"{path.name}.sha256")
    known = sha256
    if not known:
        with suppress(OSError):
            known = recorded.read_text().strip()
    if path.is_file() and known and sha256_of(path) == known:
        return path
    try:
        digest = _save(url, path)
    except OSError:
        # Offline, use a file that an older release cached without a digest.
        if path.is_file() and not known:
            return path
        raise
    _replace(recorded, f"{digest}\n".encode())
    return path


def _save(url: str, path: Path) -> str:
    """Download `url` to `path`, which is created once the download is complete; returns its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    request = urllib.request.Request(url, headers={"User-Agent": "robench"})
    descriptor, partial = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    digest, size = hashlib.sha256(), 0
    try:
        with (
            os.fdopen(descriptor, "wb") as file,
            urllib.request.urlopen(request, timeout=_TIMEOUT) as response,
        ):
            if not response.geturl().startswith("https:"):
                raise OSError(f"it redirects to {response.geturl()}, which is not https")
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            length = response.headers.get("Content-Length")
        if length is not None and int(length) != size:
            raise OSError(f"cut off after {size} of {length} bytes")
        Path(partial).replace(path)
    finally:
        with suppress(OSError):
            Path(partial).unlink()
    return digest.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    descriptor, partial = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(partial).replace(path)


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file; for an index of shards, over the digests of all its files.

    Raises:
        ResourceError: if the file or a shard cannot be read.
    """
    digest = _sha256_of(path)
    if kind_of(path) != INDEX:
        return digest
    lines = [f"{shard.name} {_sha256_of(shard)}" for shard in shards_of(path)]
    return hashlib.sha256("\n".join([digest, *lines]).encode()).hexdigest()


def _sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ResourceError(f"checkpoint {path} cannot be read: {error.strerror}") from error

"""Where a checkpoint is: a path, or an address from which it is downloaded at first use."""

import hashlib
import os
import re
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download

from robench.core.cache import cache_folder
from robench.core.errors import ResourceError, UsageError
from robench.core.trust import admit
from robench.defenses._file_kinds import INDEX, kind_of
from robench.defenses._reading import shards_of

_PIECE = 2**20
_TIMEOUT = 60
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Fetched:
    """A checkpoint that is on this machine.

    Attributes:
        path: of its file.
        weights: the set of weights in it that was named; empty for the usual one.
        notes: what a user should know, a line each.
    """

    path: Path
    weights: str = ""
    notes: tuple[str, ...] = ()


def fetch(location: str | Path, folder: Path, sha256: str = "") -> Fetched:
    """The file of a checkpoint, downloaded at first use when it is far away.

    Args:
        location: a path, relative to `folder` (or to the one that ROBENCH_CHECKPOINTS names) or absolute;
            `hf://owner/name/file`; or an https URL. `#NAME` behind it names a set of weights in the file, and
            `#sha256=DIGEST` what the file must be; both are joined by "&".
        sha256: that a downloaded file is to have, where somebody else says so; empty when it is unknown.

    Raises:
        UsageError: for a location of another kind.
        Untrusted: for one that was read from a file, unless it is a path that stays below `folder`.
        ResourceError: when the file is missing, cannot be downloaded, or is another than its digest says.
    """
    if "://" in str(location):
        admit(location, "is downloaded")
    elif Path(location).is_absolute() or ".." in Path(location).parts or str(location).startswith("~"):
        admit(location, "is a file in another folder")
    place, weights, asked = split_location(str(location), folder)
    scheme, separator, rest = place.partition("://")
    if not separator:
        path = _here(place, folder)
        notes = ()
    elif scheme == "hf":
        path = _from_hub(place, rest, asked or sha256)
        notes = _unknown(place, path, asked or sha256)
    elif scheme == "https":
        path = _reached(place, lambda: _download(place, asked or sha256))
        notes = _unknown(place, path, asked or sha256)
    else:
        raise UsageError(
            f'checkpoint "{place}" is neither a path, nor hf://owner/name/file, nor an https URL'
        )
    if asked and (digest := sha256_of(path)) != asked:
        raise ResourceError(
            f"checkpoint {place} has sha256 {digest}: {asked} was asked for; get the file again"
        )
    return Fetched(path, weights, notes)


def split_location(location: str, folder: Path = Path()) -> tuple[str, str, str]:
    """The place, the set of weights and the sha256 that a location names; a file may have "#" in its own name.

    Raises:
        UsageError: for a digest that is none.
    """
    place, separator, fragment = location.rpartition("#")
    if not separator or ("://" not in location and (folder / Path(location).expanduser()).is_file()):
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


def _here(place: str, folder: Path) -> Path:
    path = folder / Path(place).expanduser()
    brought = Path(os.environ.get("ROBENCH_CHECKPOINTS") or folder) / place
    if not path.is_file() and not brought.is_file():
        raise ResourceError(f"checkpoint {path} is missing: put it there or give another with --checkpoint")
    return path if path.is_file() else brought


def _from_hub(place: str, rest: str, sha256: str) -> Path:
    owner, _, name_and_file = rest.partition("/")
    name, _, file = name_and_file.partition("/")
    if not (owner and name and file):
        raise UsageError(f'malformed checkpoint "{place}": expected hf://owner/name/file')
    repository = f"{owner}/{name}"
    path = _reached(place, lambda: Path(hf_hub_download(repository, file)))
    if kind_of(path) == INDEX:
        beside = file.rpartition("/")[0]
        for shard in shards_of(path):
            there = f"{beside}/{shard.name}" if beside else shard.name
            _reached(place, lambda there=there: Path(hf_hub_download(repository, there)))
    if sha256 and sha256_of(path) != sha256:
        # It may have been damaged in the cache.
        path = _reached(place, lambda: Path(hf_hub_download(repository, file, force_download=True)))
    return path


def _unknown(place: str, path: Path, sha256: str) -> tuple[str, ...]:
    if sha256:
        return ()
    digest = sha256_of(path)
    return (
        f"no sha256 is known for {place}: it is taken on trust; add '#sha256={digest}' to hold it to this file",
    )


def _reached(location: str, get: Callable[[], Path]) -> Path:
    try:
        return get()
    except ResourceError:
        raise
    # Hub, proxy and socket errors share no base but this one.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ResourceError(
            f"checkpoint {location} cannot be downloaded ({reason}): get it by other means and give its path "
            "with --checkpoint"
        ) from error


def _download(url: str, sha256: str) -> Path:
    """The file at `url`, from the cache where it lies there whole: as its sha256 says, or what was noted of it."""
    folder = cache_folder("checkpoints")
    name = Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).name[-80:] or "checkpoint"
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    noted = path.with_name(f"{path.name}.sha256")
    known = sha256
    if not known:
        with suppress(OSError):
            known = noted.read_text().strip()
    if path.is_file() and known and sha256_of(path) == known:
        return path
    try:
        digest = _save(url, path)
    except OSError:
        # Kept by an older release, which noted no digest: better than nothing without the network.
        if path.is_file() and not known:
            return path
        raise
    _replace(noted, f"{digest}\n".encode())
    return path


def _save(url: str, path: Path) -> str:
    """Download `url` to `path`, which appears when all of it is there; its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    request = urllib.request.Request(url, headers={"User-Agent": "robench"})
    descriptor, waiting = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    digest, size = hashlib.sha256(), 0
    try:
        with os.fdopen(descriptor, "wb") as file, urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            if not answer.geturl().startswith("https:"):
                raise OSError(f"it leads to {answer.geturl()}, which is not https")
            while piece := answer.read(_PIECE):
                file.write(piece)
                digest.update(piece)
                size += len(piece)
            length = answer.headers.get("Content-Length")
        if length is not None and int(length) != size:
            raise OSError(f"cut off after {size} of {length} bytes")
        Path(waiting).replace(path)
    finally:
        with suppress(OSError):
            Path(waiting).unlink()
    return digest.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    descriptor, waiting = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(waiting).replace(path)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal; of an index of shards, over the digests of all its files.

    Raises:
        ResourceError: when it, or a shard, cannot be read.
    """
    digest = _sha256_of(path)
    if kind_of(path) != INDEX:
        return digest
    lines = [f"{each.name} {_sha256_of(each)}" for each in shards_of(path)]
    return hashlib.sha256("\n".join([digest, *lines]).encode()).hexdigest()


def _sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ResourceError(f"checkpoint {path} cannot be read: {error.strerror}") from error

"""Records on the move: merged from several machines, exported with their certificates.

A record's place is made of what it is, never of where it lay, so that folders and archives of others may be merged. Of
two records for one place the later stands and the other is kept under `superseded/`, whatever the order of merging.
"""

import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from robench.core import strict_json
from robench.core.errors import ResourceError, UsageError
from robench.core.formatting import size
from robench.core.io import claim, disk_errors, read_ordinary, sync_folder, write_file, write_whole
from robench.records import record
from robench.records.collection import check, in_memory
from robench.records.reading import LeftOut, files_named
from robench.records.record import Record, decode, read_record
from robench.records.store import PARTIAL, SUPERSEDED, aside, place_of, shelf_place, slug, supersede

ARCHIVE = ".zip"
# Of every file in an archive, so that the same records give the same bytes.
_MOMENT = (2000, 1, 1, 0, 0, 0)
# Above `_LARGE` bytes, a file of an archive may not be compressed by more than a factor of `_RATIO`, so that a small
# archive cannot fill the memory. Certificates are compressed by a factor of 2 to 40.
_LARGE, _RATIO = 1 << 26, 100
_NOTE = """Records of robench with their certificates. Check them, on any machine with robench and the checkpoints:

    robench verify PROTOCOL/DEFENSE/SUITE
    robench results merge THIS_FOLDER_OR_ARCHIVE --into results
"""


@dataclass(frozen=True)
class Bundle:
    """A record with the bytes of its files, by name, whole and as its digests say."""

    record: Record
    contents: Mapping[str, bytes]


@dataclass(frozen=True)
class Merged:
    """What became of one record: "new", "same", "newer" or "older" than what stood there, or "damaged".

    Attributes:
        source: where it came from; place: where it belongs; detail: of a conflict, what differs.
    """

    what: str
    source: str
    place: str
    detail: str = ""


def bundles(source: Path | str) -> Iterator[tuple[str, Bundle | str]]:
    """Every record in a folder or an archive with its files; in place of one that cannot be used, the reason.

    Superseded and partial ones, and the runs of a diagnosis, are ignored.

    Raises:
        ResourceError: when the source is not there.
    """
    source = Path(source)
    if source.is_dir():
        for file in files_named(record.FILE, source):
            if isinstance(file, LeftOut):
                yield str(file.file), file.reason
            elif not aside(file.relative_to(source).parts[:-1]):
                yield str(file.parent), _bundle(lambda name, folder=file.parent: _from_folder(folder, name))
        return
    try:
        opened = source.open("rb")
    except OSError as error:
        raise ResourceError(
            f"{source}: {error.strerror or error}: give a folder of records or an archive"
        ) from error
    with opened:
        try:
            archive = zipfile.ZipFile(opened)
            names = sorted(archive.namelist())
        # A damaged list of contents ends in errors of many kinds.
        except Exception as error:
            yield str(source), f"no archive of records ({_text(error)}): robench results export makes one"
            return
        for name in names:
            folder, _, last = name.rpartition("/")
            if last == record.FILE and not aside(folder.split("/")):
                # Read one by one and by name; nothing is unpacked to where the archive says.
                inside = f"{folder}/" if folder else ""
                yield (
                    f"{source}:{folder}",
                    _bundle(lambda name, inside=inside: _from_archive(archive, inside + name)),
                )


def _from_folder(folder: Path, name: str) -> bytes:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{name} is missing or no regular file")
    with (folder / name).open("rb") as file:
        return file.read(strict_json.LONGEST + 1 if name == record.FILE else -1)


def _from_archive(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise FileNotFoundError(f"{name} is missing") from None
    if entry.file_size > _LARGE and entry.file_size > _RATIO * entry.compress_size:
        raise ResourceError(
            f"{name} would be {size(entry.file_size)} out of {size(entry.compress_size)}: if that is meant, unpack the "
            "archive and give the folder"
        )
    return archive.read(entry)


def merge(sources: Iterable[Path | str], into: Path | str) -> Iterator[Merged]:
    """Bring every record of the sources under `into`; the same sources in any order leave the same records standing.

    A kill at any moment leaves whole records; the same command goes on.

    Raises:
        ResourceError: when a source is not there, a folder cannot be written or another run is writing it.
    """
    for source in sources:
        for name, found in bundles(source):
            if isinstance(found, str):
                yield Merged("damaged", name, "", found)
                continue
            folder = place_of(into, found.record)
            with claim(folder):
                what, detail = _place(folder, found)
            yield Merged(what, name, str(folder), detail)


def _place(folder: Path, found: Bundle) -> tuple[str, str]:
    if not (folder / record.FILE).is_file():
        write_whole(folder, found.contents)
        return "new", ""
    try:
        standing = read_record(folder)
    except ResourceError as error:
        write_whole(folder, found.contents, make_way=lambda: supersede(folder))
        return "newer", f"what stood there cannot be read: {error}"
    if (folder / record.FILE).read_bytes() == found.contents[record.FILE]:
        # A killed merge may have left the other files of a record that stands: they are put right.
        if any(_sha256(folder / name) != digest for name, digest in found.record.files.items()):
            write_whole(folder, found.contents)
        return "same", ""
    detail = _difference(standing, found.record)
    if _order(found.record, found.contents[record.FILE]) > _order(
        standing, (folder / record.FILE).read_bytes()
    ):
        write_whole(folder, found.contents, make_way=lambda: supersede(folder))
        return "newer", detail
    if _shelved(folder, found):
        return "same", ""
    place = shelf_place(folder, found.record.key[:8])
    _write_folder(place, found.contents)
    return "older", detail


def _order(found: Record, encoded: bytes) -> tuple[str, str]:
    """The later one stands; of two at one moment it is the same one everywhere."""
    return found.finished.replace("+00:00", "Z"), hashlib.sha256(encoded).hexdigest()


def _difference(standing: Record, found: Record) -> str:
    if standing.key != found.key:
        ours, theirs = standing.job, found.job
        fields = (
            "defense",
            "suite",
            "dataset",
            "n",
            "threat",
            "seed",
            "precision",
            "batch_size",
            "knowledge",
        )
        names = [name for name in fields if getattr(ours, name) != getattr(theirs, name)]
        return f"another {', '.join(names) or 'job'}"
    robust = [f"{100 * each.robust_accuracy.value:.2f} %" for each in (standing, found)]
    return "the same job" + (
        f", robust {robust[0]} stood, {robust[1]} came" if robust[0] != robust[1] else ""
    )


def _shelved(folder: Path, found: Bundle) -> bool:
    kept = (folder / SUPERSEDED).glob(f"*/{record.FILE}")
    return any(read_ordinary(file) == found.contents[record.FILE] for file in kept)


def export(sources: Iterable[Path | str], output: Path | str) -> tuple[list[str], list[LeftOut]]:
    """Write the records, whole and each in its place, into a new folder, or into an archive where its name ends so.

    Returns:
        The places, in order; and the records that cannot be used, which are left out.

    Raises:
        UsageError: when two records have one place.
        ResourceError: when no record is left, or the output is taken or cannot be written.
    """
    output = Path(output)
    found: dict[str, Bundle] = {}
    left_out: list[LeftOut] = []
    for source in sources:
        for name, each in bundles(source):
            if isinstance(each, str):
                left_out.append(LeftOut(Path(name), each))
                continue
            place = place_of("", each.record).as_posix()
            if place in found and found[place].contents != each.contents:
                raise UsageError(f"two records belong at {place}: merge them first, or export one")
            found[place] = each
    if not found and left_out:
        raise ResourceError(f"no record can be exported: {left_out[0]}")
    if not found:
        raise ResourceError(f"no records in {', '.join(map(str, sources))}: robench run makes some")
    if output.exists():
        raise ResourceError(f"{output} is there already: give another --output")
    contents = {
        f"{place}/{name}": data for place in sorted(found) for name, data in found[place].contents.items()
    }
    contents["README.txt"] = _NOTE.encode()
    if output.suffix == ARCHIVE:
        write_file(output, _archive(contents))
    else:
        _write_folder(output.absolute(), contents)
    return sorted(found), left_out


def _archive(contents: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(contents.items()):
            entry = zipfile.ZipInfo(name, _MOMENT)
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return buffer.getvalue()


def _write_folder(place: Path, contents: Mapping[str, bytes]) -> None:
    """A folder that is there whole or not at all."""
    with disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        copy = Path(tempfile.mkdtemp(prefix=".", suffix=PARTIAL, dir=place.parent))
        try:
            copy.chmod(0o755)
            for name, data in contents.items():
                write_file(copy / name, data)
            copy.rename(place)
        except OSError:
            shutil.rmtree(copy, ignore_errors=True)
            raise
        sync_folder(place.parent)


def _bundle(read: Callable[[str], bytes]) -> Bundle | str:
    """The record whose files `read(name)` gives, or why it cannot be used."""
    try:
        encoded = read(record.FILE)
        found = decode(encoded)
        if strange := [name for name in found.files if slug(name) != name]:
            return f"files.{strange[0]} is no name of a file beside it"
        contents = {name: read(name) for name in sorted(found.files)}
        for name, digest in found.files.items():
            if (actual := hashlib.sha256(contents[name]).hexdigest()) != digest:
                return f"files.{name}: the record says {digest[:12]}..., found {actual[:12]}..."
        check(found, in_memory(contents))
    # Encrypted, of an unknown compression, damaged: a file from elsewhere ends in errors of many kinds.
    except Exception as error:
        return _text(error)
    return Bundle(found, {**contents, record.FILE: encoded})


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(read_ordinary(path)).hexdigest()
    except OSError:
        return ""

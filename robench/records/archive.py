"""Merge records from several machines, and export them with their certificates.

The folder of a record follows from its content, so folders and archives from anywhere can be merged. Of two records for
one folder, the later is kept and the other moves to `superseded/`, in whatever order they are merged.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from robench.core import strict_json
from robench.core.errors import ResourceError, UsageError, one_line
from robench.core.formatting import size
from robench.core.io import claim, disk_errors, read_ordinary, write_file, write_whole
from robench.records import record as record_file
from robench.records.collection import check, check_files, in_memory
from robench.records.reading import LeftOut, files_named
from robench.records.record import Record, decode, read_record
from robench.records.store import (
    SUPERSEDED,
    aside,
    is_current,
    place_of,
    shelf_place,
    supersede,
    whole_folder,
)
from robench.records.unfinished import merge_shares

ARCHIVE = ".zip"
# Date of every file in an archive, so that the same records give the same bytes.
_MOMENT = (2000, 1, 1, 0, 0, 0)
# Above `_LARGE` bytes, a file of an archive may not be compressed by more than a factor of `_RATIO`, so that a small
# archive cannot fill the memory. Certificates compress by a factor of 2 to 40.
_LARGE, _RATIO = 1 << 26, 100
# The methods of compression that zipfile expands in pieces, so that no entry takes more memory than its stated size.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_NOTE = """Records of robench with their adversarial examples. To check them with robench and the checkpoints:

    robench verify PROTOCOL/DEFENSE/SUITE
    robench results merge THIS_FOLDER_OR_ARCHIVE --into results
"""


@dataclass(frozen=True)
class Bundle:
    """A record with the contents of its files, by name, which match its digests."""

    record: Record
    contents: Mapping[str, bytes]


@dataclass(frozen=True)
class Merged:
    """The result of merging one record.

    Attributes:
        what: "new", "damaged", or compared with the existing record "same", "newer" or "older"; "share" for a share of
            an unfinished run.
        source: the folder or archive that the record is from.
        place: the folder that it belongs in; empty if it is damaged.
        detail: what differs from the existing record, or why the record cannot be used.
    """

    what: str
    source: str
    place: str
    detail: str = ""


def bundles(source: Path | str) -> Iterator[tuple[str, Bundle | str]]:
    """Yield the name and the files of each record in a folder or archive, or the reason why it cannot be used.

    Superseded and partial records and the runs of a diagnosis are ignored.

    Raises:
        ResourceError: when the source does not exist.
    """
    source = Path(source)
    if source.is_dir():
        for file in files_named(record_file.FILE, source):
            if isinstance(file, LeftOut):
                yield str(file.file), file.reason
            elif is_current(file, source):
                yield str(file.parent), _bundle(partial(_from_folder, file.parent))
        return
    try:
        opened = source.open("rb")
    except OSError as error:
        raise ResourceError(
            f"{source}: {error.strerror or error}: expected a folder of records or an archive"
        ) from error
    with opened:
        length = os.fstat(opened.fileno()).st_size
        try:
            archive = zipfile.ZipFile(opened)
            names = sorted(archive.namelist())
        # A damaged table of contents raises many kinds of errors.
        except Exception as error:
            yield (
                str(source),
                f"not an archive of records ({one_line(error, None)}): robench results export writes one",
            )
            return
        for name in names:
            folder, _, last = name.rpartition("/")
            if last == record_file.FILE and not aside(folder.split("/")):
                # Files are read into memory by name: unpacking could write outside a folder.
                read = partial(_from_archive, archive, length, f"{folder}/" if folder else "")
                yield f"{source}:{folder}", _bundle(read)


def _from_folder(folder: Path, name: str) -> bytes:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{name} is missing or not a regular file")
    with (folder / name).open("rb") as file:
        return file.read(strict_json.LONGEST + 1 if name == record_file.FILE else -1)


def _from_archive(archive: zipfile.ZipFile, length: int, inside: str, name: str) -> bytes:
    """A file in a folder of an archive of `length` bytes."""
    name = inside + name
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise FileNotFoundError(f"{name} is missing") from None
    if entry.compress_type not in _METHODS:
        raise ResourceError(
            f"{name} is compressed in an unusual way: unpack the archive and specify the folder"
        )
    # The archive itself says how large an entry is, but no entry is larger than the archive.
    compressed = min(entry.compress_size, length)
    if entry.file_size > max(_LARGE, _RATIO * compressed):
        raise ResourceError(
            f"{name} would expand from {size(compressed)} to {size(entry.file_size)}: if this is intended, "
            "unpack the archive and specify the folder"
        )
    return archive.read(entry)


def merge(sources: Iterable[Path | str], into: Path | str) -> Iterator[Merged]:
    """Merge the records of the sources, and shares of unfinished runs, into a folder, in whatever order.

    An interrupted merge leaves only complete records; merging the same sources again resumes it.

    Raises:
        ResourceError: when a source does not exist, a folder cannot be written or another run is writing it.
    """
    for source in sources:
        for name, bundle in bundles(source):
            if isinstance(bundle, str):
                yield Merged("damaged", name, "", bundle)
                continue
            folder = place_of(into, bundle.record.job)
            with claim(folder):
                what, detail = _place(folder, bundle)
            yield Merged(what, name, str(folder), detail)
        if Path(source).is_dir():
            for what, share, place, detail in merge_shares(Path(source), Path(into)):
                yield Merged(what, str(share), str(place), detail)


def _place(folder: Path, bundle: Bundle) -> tuple[str, str]:
    if not (folder / record_file.FILE).is_file():
        write_whole(folder, bundle.contents)
        return "new", ""
    try:
        existing = read_record(folder)
    except ResourceError as error:
        write_whole(folder, bundle.contents, make_way=lambda: supersede(folder))
        return "newer", f"the existing record cannot be read: {error}"
    if (folder / record_file.FILE).read_bytes() == bundle.contents[record_file.FILE]:
        # An interrupted merge may have left other files of the existing record incomplete.
        if any(_sha256(folder / name) != digest for name, digest in bundle.record.files.items()):
            write_whole(folder, bundle.contents)
        return "same", ""
    detail = _difference(existing, bundle.record)
    existing_order = _order(existing, (folder / record_file.FILE).read_bytes())
    if _order(bundle.record, bundle.contents[record_file.FILE]) > existing_order:
        write_whole(folder, bundle.contents, make_way=lambda: supersede(folder))
        return "newer", detail
    superseded = (folder / SUPERSEDED).glob(f"*/{record_file.FILE}")
    if any(read_ordinary(file) == bundle.contents[record_file.FILE] for file in superseded):
        return "same", ""
    place = shelf_place(folder, bundle.record.key[:8])
    _write_folder(place, bundle.contents)
    return "older", detail


def _order(record: Record, encoded: bytes) -> tuple[str, str]:
    """Sort key: the later record is kept, and the digest decides between records of the same time."""
    return record.finished.replace("+00:00", "Z"), hashlib.sha256(encoded).hexdigest()


def _difference(existing: Record, incoming: Record) -> str:
    if existing.key != incoming.key:
        old, new = existing.job, incoming.job
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
        names = [name for name in fields if getattr(old, name) != getattr(new, name)]
        return f"another {', '.join(names) or 'job'}"
    before, after = (f"{100 * record.robust_accuracy.value:.2f} %" for record in (existing, incoming))
    return "the same job" + (f", robust accuracy {after} instead of {before}" if before != after else "")


def export(sources: Iterable[Path | str], output: Path | str) -> tuple[list[str], list[LeftOut]]:
    """Write the records with their files to a new folder, or to an archive if the name ends in .zip.

    Returns:
        The folders of the records in the output, sorted, and the records that cannot be used, which are left out.

    Raises:
        UsageError: when two different records belong in the same folder.
        ResourceError: when there is no usable record, or the output exists or cannot be written.
    """
    output = Path(output)
    exported: dict[str, Bundle] = {}
    left_out: list[LeftOut] = []
    for source in sources:
        for name, bundle in bundles(source):
            if isinstance(bundle, str):
                left_out.append(LeftOut(Path(name), bundle))
                continue
            place = place_of("", bundle.record.job).as_posix()
            if place in exported and exported[place].contents != bundle.contents:
                raise UsageError(f"two records belong in {place}: merge them first, or export only one")
            exported[place] = bundle
    if not exported and left_out:
        raise ResourceError(f"no record can be exported: {left_out[0]}")
    if not exported:
        raise ResourceError(f"no records in {', '.join(map(str, sources))}: robench run writes them")
    if output.exists():
        raise ResourceError(f"{output} already exists: choose another --output")
    places = sorted(exported)
    contents = {
        f"{place}/{name}": data for place in places for name, data in exported[place].contents.items()
    }
    contents["README.txt"] = _NOTE.encode()
    if output.suffix == ARCHIVE:
        write_file(output, _archive(contents))
    else:
        _write_folder(output.absolute(), contents)
    return places, left_out


def _archive(contents: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(contents.items()):
            entry = zipfile.ZipInfo(name, _MOMENT)
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return buffer.getvalue()


def _write_folder(place: Path, contents: Mapping[str, bytes]) -> None:
    """Write a folder that is either complete or absent."""
    with disk_errors(place), whole_folder(place) as copy:
        for name, data in contents.items():
            write_file(copy / name, data)


def _bundle(read: Callable[[str], bytes]) -> Bundle | str:
    """The record whose files `read(name)` returns, or the reason why it cannot be used."""
    try:
        encoded = read(record_file.FILE)
        record = decode(encoded)
        check_files(record)
        contents = {name: read(name) for name in sorted(record.files)}
        for name, digest in record.files.items():
            if (actual := hashlib.sha256(contents[name]).hexdigest()) != digest:
                return f"files.{name}: the record says {digest[:12]}..., found {actual[:12]}..."
        check(record, in_memory(contents))
    # Encrypted, damaged or unusually compressed archives raise many kinds of errors.
    except Exception as error:
        return one_line(error, None)
    return Bundle(record, {**contents, record_file.FILE: encoded})


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(read_ordinary(path)).hexdigest()
    except OSError:
        return ""

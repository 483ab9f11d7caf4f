"""Pictures in parquet files, as Hugging Face keeps image data sets; read by pyarrow, a few rows at a time."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robench.core.errors import ResourceError, UsageError
from robench.data._image_files import Blob, named

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<rest>.*)")
# Taken where the files do not say which columns are of images and labels.
_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "fine_label", "cls")
_BATCH = 64
# Bytes of a column chunk held at a time: without it all of a row group's images would be.
_BUFFER = 1 << 20


@dataclass(frozen=True)
class Table:
    """The rows of some files, one after the other.

    Attributes:
        files, counts: paths, and rows of each.
        image: column of pictures.
        labels: (N,) int64, in 0 .. K - 1.
        classes: names, K of them.
    """

    files: tuple[Path, ...]
    counts: tuple[int, ...]
    image: str
    labels: np.ndarray
    classes: tuple[str, ...]

    def names(self) -> list[str]:
        """What the files call each picture; empty where they do not say."""
        found: list[str] = []
        for file, count in zip(self.files, self.counts, strict=True):
            with _reading(file):
                table = pq.ParquetFile(file)
                # Unbuffered reading would hold the pictures that lie between.
                paths = _inner(table.schema_arrow.field(self.image).type, "path")
                column = table.read([f"{self.image}.{paths}"])[self.image] if paths else None
                found += (
                    [""] * count if column is None else [each["path"] or "" for each in column.to_pylist()]
                )
        return found

    def pictures(self, rows: Sequence[int]) -> Iterator[tuple[int, Blob]]:
        """Place in `rows` and content of each picture wanted, in the files' order.

        Raises:
            ResourceError: when a file is damaged.
        """
        places = {row: place for place, row in enumerate(rows)}
        start = 0
        for file, count in zip(self.files, self.counts, strict=True):
            with _reading(file):
                yield from self._of_file(file, start, places)
            start += count

    def _of_file(self, file: Path, start: int, places: dict[int, int]) -> Iterator[tuple[int, Blob]]:
        with pq.ParquetFile(file, buffer_size=_BUFFER) as table:
            inner = _inner(table.schema_arrow.field(self.image).type, "bytes")
            column = f"{self.image}.{inner}" if inner else self.image
            end = 0
            for group in range(table.num_row_groups):
                first, end = end, end + table.metadata.row_group(group).num_rows
                if places.keys().isdisjoint(range(start + first, start + end)):
                    continue
                batches = table.iter_batches(_BATCH, [group], [column])
                values = (value for batch in batches for value in batch.column(0))
                for row, value in zip(range(first, end), values, strict=True):
                    if start + row in places:
                        content = value.as_py()
                        content = content["bytes"] if isinstance(content, dict) else content
                        yield places[start + row], Blob(f"{file} row {row}", content)


def open_table(files: Sequence[Path], name: str, image: str = "", label: str = "") -> Table:
    """Look into parquet files of one data set; no picture is read yet.

    Args:
        files: in order; of those numbered by `-00000-of-00014` all must be there.
        name: of the data set, for messages.
        image, label: columns; empty for what the files say, or else `image` or `img`, and `label` or `labels`.

    Raises:
        ResourceError: when files are missing, damaged or unlike each other, or rows have no label.
        UsageError: when there is no such column, or several, or one of another type.
    """
    _check_shards(files, name)
    schemas, counts, bad = [], [], []
    for file in files:
        try:
            with pq.ParquetFile(file) as table:
                schemas.append(table.schema_arrow)
                counts.append(table.metadata.num_rows)
        except (OSError, pa.ArrowException):
            bad.append(file)
    if bad:
        raise ResourceError(
            f"{len(bad)} of {len(files)} files of {name} cannot be read as parquet: {named(bad)}; get them again"
        )
    schema, said = schemas[0], _features(schemas[0])
    image = image or _column(schema, said, "Image", _IMAGES, name, "image")
    label = label or _column(schema, said, "ClassLabel", _LABELS, name, "label")
    for wanted in (image, label):
        if wanted not in schema.names:
            raise UsageError(f"{name} has no column {wanted}: it has {', '.join(schema.names)}")
    if not _holds_pictures(schema.field(image).type):
        raise UsageError(
            f"the column {image} of {name} is {schema.field(image).type}: expected the bytes of pictures, or a struct "
            "with bytes"
        )
    unlike = [
        file
        for file, other in zip(files, schemas, strict=True)
        if any(
            each not in other.names or other.field(each).type != schema.field(each).type
            for each in (image, label)
        )
    ]
    if unlike:
        raise ResourceError(
            f"{len(unlike)} files of {name} have other columns than {files[0].name}: {named(unlike)}"
        )
    labels, classes = _labels(files, label, tuple(said.get(label, {}).get("names") or ()), name)
    return Table(tuple(files), tuple(counts), image, labels, classes)


def _check_shards(files: Sequence[Path], name: str) -> None:
    there: dict[tuple[Path, str, int], set[int]] = {}
    for file in files:
        if match := _SHARD.fullmatch(file.stem):
            key = (file.parent, match["stem"], int(match["count"]))
            there.setdefault(key, set()).add(int(match["number"]))
    lost = [
        folder / f"{stem}-{number:05d}-of-{count:05d}.parquet"
        for (folder, stem, count), numbers in there.items()
        for number in range(count)
        if number not in numbers
    ]
    if lost:
        raise ResourceError(f"{len(lost)} files of {name} are missing: {named(lost)}; get them again")


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What Hugging Face has written of the columns: {"label": {"_type": "ClassLabel", "names": [...]}}."""
    try:
        said = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return (
        {key: each for key, each in said.items() if isinstance(each, dict)} if isinstance(said, dict) else {}
    )


def _column(
    schema: pa.Schema, said: dict[str, Any], kind: str, usual: tuple[str, ...], name: str, argument: str
) -> str:
    found = [column for column, each in said.items() if each.get("_type") == kind and column in schema.names]
    found = found or [column for column in usual if column in schema.names][:1]
    if len(found) != 1:
        what = (
            f"several columns of that kind: {', '.join(found)}"
            if found
            else f"columns {', '.join(schema.names)}"
        )
        raise UsageError(
            f'which column of {name} is meant by {argument}? It has {what}: say {argument}="..."'
        )
    return found[0]


def _inner(kind: pa.DataType, field: str) -> str:
    """`field` where the column is a struct that has it."""
    return field if pa.types.is_struct(kind) and kind.get_field_index(field) >= 0 else ""


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(_inner(kind, "bytes"))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _labels(
    files: Sequence[Path], label: str, classes: tuple[str, ...], name: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    parts = []
    for file in files:
        with _reading(file):
            parts.append(pq.read_table(file, columns=[label])[label].combine_chunks())
    column = pa.chunked_array(parts).combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not len(column):
        raise ResourceError(f"{name} holds no images")
    if column.null_count:
        raise ResourceError(
            f"{column.null_count} of {len(column)} rows of {name} have no {label}: restore them"
        )
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        words = np.array(column.to_pylist())
        names, labels = np.unique(words, return_inverse=True)
        return labels.astype(np.int64), tuple(names.tolist())
    if not pa.types.is_integer(column.type):
        raise UsageError(
            f"the column {label} of {name} is {column.type}: expected whole numbers or names of classes"
        )
    labels = column.to_numpy().astype(np.int64)
    classes = classes or tuple(str(k) for k in range(int(labels.max()) + 1))
    outside = (labels < 0) | (labels >= len(classes))
    if outside.any():
        # -1 is what Hugging Face writes for a label that is kept secret.
        raise ResourceError(
            f"{int(outside.sum())} of {len(labels)} rows of {name} have a {label} outside 0 .. {len(classes) - 1}, "
            f"{int(labels[outside][0])} the first: choose a part with labels"
        )
    return labels, classes


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:120]
        raise ResourceError(f"{file} is damaged ({reason}): get it again") from error
